"""What `train` says before it begins and after it ends."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_collections

from cm_jax.cli.flags import counted

if TYPE_CHECKING:
  from cm_jax.models import Experiment
  from cm_jax.training.goodput import Goodput


def described(experiment: "Experiment", step: int = 0) -> list[str]:
  """Return what is about to be trained, on what, and how long.

  Args:
    experiment: From `build`.
    step: After which it begins.
  """
  from cm_jax.data.sources import told

  method, config, run = experiment.method, experiment.config, experiment.config.run
  network, shape = config.network, "x".join(map(str, method.image_shape))
  precision = [network[key] for key in ("dtype",) if key in network]
  precision += [f"matrix products {config.matmul_precision}"] if "matmul_precision" in config else []
  kind = f"{config.objective.name}, trains a {method.objective.trains.replace('_', ' ')} model"
  a_device = config.batch_size // experiment.mesh.size // config.accumulation
  parts = f" in {config.accumulation} micro-batches" if config.accumulation > 1 else ""
  following = min((step // run.checkpoint_every + 1) * run.checkpoint_every, method.num_steps)
  begins = f", {step:,} done" if step else ""
  return [
    f"model: {kind}; {network.name}, {method.parameters():,} parameters, {', '.join(precision) or 'float32'}",
    f"data: {config.data.source}, {counted(len(experiment.source), 'image')} of {shape}"
    + (
      f", cropped to {config.data.resolution} pixels ({config.data.crop})"
      if config.data.crop != "none"
      else ""
    )
    + (f", {method.num_classes} classes as labels" if method.num_classes else ", labels not used"),
    *(f"  {line}" for line in told(experiment.source)),
    f"devices: {devices(experiment)}, {counted(a_device, 'image')} at a time on each{parts}",
    length(experiment) + begins,
    *planned(experiment),
    f"checkpoint: next at step {following:,}, every {run.checkpoint_every:,}; log every {run.log_every:,}",
    "compiling the step; the first one takes longest",
  ]


def devices(experiment: "Experiment") -> str:
  """Return what a run is on, such as "8 x NVIDIA H100 (data 4, fsdp 2)"."""
  import jax

  mesh = experiment.mesh
  shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
  return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{hosts} ({shape})"


def length(experiment: "Experiment") -> str:
  """Return how long the run is, and where its learning rate and curricula stand when it ends."""
  method, config = experiment.method, experiment.config
  images = method.num_steps * config.batch_size
  whole = f"{images:,} images" + (f" of {config.num_images:,}" if images < config.num_images else "")
  last = method.num_steps - 1
  ends = {"learning_rate": method.learning_rate(last), **method.objective.progress(last)}
  at_the_end = ", ".join(f"{name} {float(value):g}" for name, value in ends.items())
  return f"length: {method.num_steps:,} steps of {config.batch_size}, {whole}; in the last: {at_the_end}"


def planned(experiment: "Experiment") -> list[str]:
  """Return the short form of the run's plan; nothing on a device that no data sheet is known of."""
  from cm_jax.benchmark.plan import accelerators, estimate, report, setting

  mesh = experiment.mesh
  device = accelerators.of_device(mesh.devices.flat[0], mesh.size)
  if device is None:
    return []
  return report.short(estimate.plan(setting.of_experiment(experiment), device, mesh.size, remat=False))


def ended(experiment: "Experiment", workdir: str, step: int, goodput: "Goodput | None") -> list[str]:
  """Return what has been trained, and what can be done next.

  Args:
    experiment: The run.
    workdir: Where it is.
    step: Where it stands.
    goodput: How its time was spent; None if there was nothing left to do.
  """
  from cm_jax import cli
  from cm_jax.assembly.method import length_of
  from cm_jax.storage.run import RunFolder

  config, program = experiment.config, cli.program()
  drawn = (
    f"; samples drawn while training: {workdir}/samples" if RunFolder.at(workdir).samples.exists() else ""
  )
  before = "" if goodput else ", as it was before: there is nothing left to do"
  lines = [f"{workdir}: trained to step {step}{before}{drawn}"]
  lines += [goodput.told()] if goodput else []
  lines += best(experiment, workdir) if config.run.evaluate.every else []
  lines.append(f"next: {program} sample --workdir={workdir} --num=64 --out={workdir}.png")
  if experiment.method.objective.trains == "diffusion":
    lines.append(f"      {program} train --config=CONFIG.py --teacher={workdir} --workdir=...   # distil it")
  if step < length_of(config):
    lines.append(
      f"      {program} train --workdir={workdir} --config.run.num_steps=0   # on, to the run's end"
    )
  return lines


def best(experiment: "Experiment", workdir: str) -> list[str]:
  """Return which checkpoint is the best by what `config.run.evaluate` measured; nothing if none was."""
  from cm_jax.assembly.best import best_checkpoint, criterion_of
  from cm_jax.errors import UserError
  from cm_jax.training.checkpoint import CheckpointStore

  try:
    found = best_checkpoint(workdir, CheckpointStore(workdir).steps())
  except UserError:  # none was measured
    return []
  name = criterion_of(experiment.config.run.evaluate).name
  return [f"best by {name}: {found.value:.4g} at step {found.step}, kept (--step=best)"]


def keys(config: Any, path: str = "config") -> list[str]:
  """Return every key of a config with its value, as the command line sets it.

  >>> keys({"seed": 0, "noise": {"rho": 7.0}})
  ['--config.seed=0', '--config.noise.rho=7.0']
  """
  found = []
  for key, value in config.items():
    is_section = isinstance(value, (Mapping, ml_collections.ConfigDict, ml_collections.FrozenConfigDict))
    found += keys(value, f"{path}.{key}") if is_section and len(value) else [f"--{path}.{key}={value}"]
  return found
