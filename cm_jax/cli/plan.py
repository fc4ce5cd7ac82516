"""Work out what a run will cost from its config alone: no data, no device, seconds.

  python -m cm_jax plan --config=configs/cifar10_ect.py --device=v5e --count=8
  python -m cm_jax plan --config=configs/imagenet64_edm.py --device=h100 --count=32 --config.mesh.fsdp=8
  python -m cm_jax plan --config=configs/digits_edm.py --device=cpu --count=8 --compile

Printed are parameters, FLOPs an image by part of the step, memory a device by kind, the batch that fits, a
checkpoint's size, days and device-hours at a stated share of the peak rate (--mfu), and what would fit where
this does not. Images of a data set that is not known by name: --config.data.image_shape=64,64,3.

Memory of parameters, optimiser, averages, teacher is exact; activations are an estimate, from the order of
the traced program, without compiling. --compile also compiles the real step for --count devices of this
machine (fake ones on a CPU) and prints XLA's own figures. A count is of devices as JAX sees them: a chip of
TPU7x is two.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import flags

from cm_jax.cli.flags import define_here, is_main, start
from cm_jax.cli.libraries import uncollected
from cm_jax.errors import UserError

MOST_COMPILED = 512  # fake devices


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = lambda name, default, about: flags.DEFINE_string(name, default, about, flag_values=values)
  define_here(values, "config", "The config file; --config.key=value overrides any key.")
  text("workdir", None, "A run folder whose stored config is planned, where no --config is given.")
  text("teacher", None, "Run or weights folder of the teacher, of which the network is taken.")
  text("init", None, "Run or weights folder to start from.")
  text("device", "h100", "a100, h100, h200, v5e, v5p, v6e, tpu7x (half a chip) or cpu, this machine.")
  flags.DEFINE_integer("count", 1, "Devices.", lower_bound=1, upper_bound=10**6, flag_values=values)
  about = "Share of the devices' peak rate that is reached."
  flags.DEFINE_float("mfu", 0.35, about, lower_bound=1e-6, upper_bound=1.0, flag_values=values)
  about = (
    "Also compile the step for --count devices and print XLA's own memory; takes minutes for large ones."
  )
  flags.DEFINE_bool("compile", False, about, flag_values=values)
  about = "Of a run with remat also what it would hold without, which takes as long again."
  flags.DEFINE_bool("remat", False, about, flag_values=values)
  flags.DEFINE_bool("json", False, "Print the plan as one JSON object.", flag_values=values)


def main(values: flags.FlagValues, overrides: Sequence[str]) -> None:
  """Plan, and print it."""
  from cm_jax.benchmark.plan import compiled, report
  from cm_jax.benchmark.plan.accelerators import accelerator
  from cm_jax.benchmark.plan.estimate import plan
  from cm_jax.benchmark.plan.setting import of_config
  from cm_jax.cli.config_flags import teacher_network
  from cm_jax.cli.train import read

  if not values.config and not values.workdir:
    raise UserError("config", "", "a config file (or --workdir of a run)")
  device = accelerator(values.device, values.count)
  config = read(values, overrides)
  if values.compile:
    if values.count > MOST_COMPILED:
      raise UserError("count", values.count, f"at most {MOST_COMPILED} devices with --compile")
    compiled.ask_for_devices(values.count)
  start()
  if values.compile:
    compiled.check_devices(values.count)
  with uncollected():
    setting = of_config(config, teacher_network(values.config) if values.config else None)
    planned = plan(setting, device, values.count, values.mfu, values.remat)
  by_xla = compiled.compile_step(setting) if values.compile else None
  if not is_main():
    return
  if values.json:
    extra = {} if by_xla is None else {"compiled": dataclasses.asdict(by_xla)}
    print(json.dumps({**planned.to_dict(), **extra}, indent=1))
    return
  print("\n".join(report.lines(planned)))
  if by_xla is not None:
    sizes = f"arguments {report.gigabytes(by_xla.arguments)}, between {report.gigabytes(by_xla.temporaries)}"
    print(f"compiled for {values.count} devices of {by_xla.backend}, on each: {sizes}")
