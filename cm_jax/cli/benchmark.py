"""Measure what things cost on this machine: what is compared is timed in turns, in one process.

  python -m cm_jax benchmark --network=digits16 --batch=1,8,64 --nfe=1,2,35 --out=rates.jsonl --png=rates.png
  python -m cm_jax benchmark --what=sampling,train,compile --model=runs/cd --dtype=float32,bfloat16
  python -m cm_jax benchmark --what=train --network=digits16 --beside=torch
  python -m cm_jax benchmark --what=loop --config=configs/digits_edm.py --batch=96
  python -m cm_jax benchmark --what=startup --model=digits-cd --nfe=1
  python -m cm_jax benchmark --what=objectives --config=configs/digits_edm.py --only=ct,cd_heun --rounds=15
  python -m cm_jax benchmark --what=writing --network=cifar --batch=16 --num=64
  python -m cm_jax benchmark --what=data --network=cifar --source=folder:/path --source=zip:/path.zip
  python -m cm_jax benchmark --what=features --features=inception,dinov2-b,digits --beside=torch

What is measured is a stock --network with random weights, a --model (a run or a weights folder) or what a
--config trains. --what is one or several of:

sampling, train: images a second of the jitted sampler, from key to pixels, and of the whole train step, for
every --batch, --nfe, --dtype and number of --devices: medians over rounds with quartiles, p50 and p99 of
single images, memory, compile time, FLOPs, and MFU over the rate of a matrix product of the same rounds (or
over --peak). Where that product's time varies, the machine is said to be noisy. --beside=torch (DDPM++)
times the same network with the same weights in PyTorch in the same rounds.

loop: images a second of `train`, in the midst of a run in a folder that is removed, and of its step alone, in
turns: what input, metrics and waiting cost. Of a --config with its data and teacher.

compile: seconds to trace, to compile with an empty cache, and to compile from the cache.

startup: seconds from the start of a new process to its first --batch of images: with an empty cache, from the
cache, and with a `jax.export` blob of the sampler in place of tracing, if flatbuffers is installed.

objectives: a train step of every objective beside plain denoising; synthetic images, random weights also for
the teacher. Columns: FLOPs of a step and their ratio to denoising's; median time; the median over rounds of
the ratio of times; (step - denoising) in forward passes of the network; memory of intermediate values.

writing: images a second of the jitted sampler alone and on their way to the disk as `sample` writes them.

data: images a second of every --source into device memory, from RAM and streamed by worker processes, beside
the denoising step; without --source, of folders of made-up JPEGs of 64 and 256 pixels.

features: seconds that a thousand images take in each network of --features that measures images; of random
weights, but where --weights or a folder has some. --beside=torch times Inception in torch too, with the same
weights on the same processors, and gives the median over rounds of the ratio of times.

Nothing is written but --out, --png and --trace.
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cm_jax.benchmark.cases import CASES, WORKLOADS, case_of
from cm_jax.benchmark.plan.accelerators import accelerator
from cm_jax.benchmark.records import check_out, circumstances, table, write
from cm_jax.cli.flags import define_here, define_weights, is_main, start
from cm_jax.cli.measurements import MEASUREMENTS, batch_size, noise_levels, whole_numbers
from cm_jax.errors import UserError, one_of, renamed
from cm_jax.networks.fields import DTYPES

if TYPE_CHECKING:
  from cm_jax.benchmark.subjects import Subject


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = lambda name, default, about: flags.DEFINE_string(name, default, about, flag_values=values)
  several = lambda name, default, about: flags.DEFINE_list(name, default, about, flag_values=values)
  several("what", "sampling", f"What to measure, one or several of {', '.join(MEASUREMENTS)}.")
  about = "digits8, digits16, small32: DDPM++ of 0.34, 1 and 1.6 M parameters;"
  about += " cifar: DDPM++, 55.7 M."
  flags.DEFINE_enum("network", "digits16", list(WORKLOADS), about, flag_values=values)
  define_weights(values)
  define_here(values, "config", "Measure what this config file trains; --config.key=value overrides any key.")
  several("batch", [], "Images at a time; by default 1,8,64 for sampling, else the network's own.")
  several("nfe", ["1", "2", "35"], "Network evaluations an image, of sampling.")
  several("dtype", [], f"What the network computes in, of {', '.join(DTYPES)}; by default its own.")
  several("devices", ["1"], "Over how many devices of this host a batch is spread.")
  flags.DEFINE_integer("rounds", 9, "Timings of each.", lower_bound=1, flag_values=values)
  about = "Time the same network beside ours: torch, if installed."
  flags.DEFINE_enum("beside", None, ["torch"], about, flag_values=values)
  flags.DEFINE_bool("compiled", False, "With --beside=torch: torch.compile as well.", flag_values=values)
  text("peak", None, "What counts as all of the machine: an accelerator that `plan` knows.")
  several("only", list(CASES), "Objectives to measure, these or any other by its name; denoising always is.")
  text("sigmas", "80", "Noise levels of the sampler, of writing.")
  flags.DEFINE_integer("num", 2048, "Images a timing of writing.", lower_bound=1, flag_values=values)
  about = "Data set to read; may be given several times."
  flags.DEFINE_multi_string("source", None, about, flag_values=values)
  about = "Processes that decode images which are not in RAM."
  flags.DEFINE_integer("workers", 2, about, lower_bound=1, flag_values=values)
  several("features", ["inception"], "Networks that measure images, by name, or folders of train-features.")
  text("weights", None, "Of the one network of --features; random if not given.")
  flags.DEFINE_integer("seed", 0, "Of weights, images and noise.", lower_bound=0, flag_values=values)
  text("out", None, "File with every number and where it was measured: .json, or .jsonl with a line a row.")
  text("png", None, "Picture of sampling and train: images a second over the batch.")
  about = "Folder for jax.profiler. XLA_FLAGS=--xla_cpu_enable_xprof_traceme=true names operations on a CPU."
  define_here(values, "trace", about)


def main(values: flags.FlagValues, overrides: Sequence[str]) -> None:
  """Measure, print the tables, write the record."""
  for name in values.what:
    if name not in MEASUREMENTS:
      raise UserError("what", name, one_of(MEASUREMENTS, name))
  for name in values.only:
    case_of(name)
  for name in values.dtype:
    if name not in DTYPES:
      raise UserError("dtype", name, one_of(DTYPES, name))
  noise_levels(values)
  for name in ("batch", "nfe", "devices"):
    whole_numbers(values, name)
  if values.beside and set(values.dtype) - {"float32"}:
    raise UserError("dtype", ",".join(values.dtype), f"float32 with --beside={values.beside}")
  if values.peak is not None:
    with renamed("device", "peak"):
      accelerator(values.peak)
  if values.config and (values.model or values.workdir):
    raise UserError("config", values.config, "either --config or --model")
  if "loop" in values.what and not values.config:
    raise UserError("what", "loop", "a --config beside it: it trains, on the config's own data")
  check_out(values.out)
  check_out(values.png, "png")
  start()
  subject = subject_of(values, overrides)
  traced: Any = contextlib.nullcontext()
  if values.trace:
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # its events fill the trace before the first program has run
    traced = jax.profiler.trace(values.trace, profiler_options=options)
  with traced:
    measured = [(name, *MEASUREMENTS[name](values, subject)) for name in values.what]
  if is_main():
    tell(values, subject, measured)


def tell(values: flags.FlagValues, subject: "Subject", measured: Sequence[tuple[str, list, dict]]) -> None:
  """Print the tables, write the record and the picture."""
  from cm_jax.benchmark import chart, throughput
  from cm_jax.config import plain_json

  for _, rows, columns in measured:
    print(table(rows, columns))
    if rows and "noisy" in rows[0] and (said := throughput.noisy(rows)):
      print(said)
  rates = [row for name, rows, _ in measured if name in ("sampling", "train") for row in rows]
  if values.png and rates:
    chart.save(rates, values.png)
  if values.out:
    about = {key: values[key].value for key in ("rounds", "seed")}
    config = {"network": plain_json(subject.config.network), "image_shape": subject.model.image_shape}
    config |= {"matmul_precision": subject.config.matmul_precision}
    rows = [{"what": name, **row} for name, rows, _ in measured for row in rows]
    subject_is = {"network": subject.name, "batch_size": batch_size(values, subject), "config": config}
    what = {"what": ",".join(values.what)}
    write({**what, **subject_is, **about, **circumstances(), "rows": rows}, values.out)


def subject_of(values: flags.FlagValues, overrides: Sequence[str]) -> "Subject":
  """Return what the flags ask to measure.

  Raises:
    UserError: A model or a config that is not there, or overrides of none.
  """
  from cm_jax.benchmark import subjects
  from cm_jax.cli.config_flags import override, read_file

  path = values.model or values.workdir
  if values.config:
    return subjects.of_config(override(read_file(values.config), overrides), values.config, values.seed)
  if overrides:
    raise UserError(overrides[0].partition("=")[0], overrides[0].partition("=")[2], "--config before it")
  if path:
    return subjects.of_model(path, values.step, values.average, values.kind)
  return subjects.of_network(values.network, values.seed)
