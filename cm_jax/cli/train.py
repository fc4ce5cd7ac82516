"""Train a model from a config, or go on with the run in --workdir.

  python -m cm_jax train --config=configs/digits_edm.py --workdir=runs/edm
  python -m cm_jax train --config=configs/digits_cd.py --teacher=runs/edm --workdir=runs/cd --config.seed=1
  python -m cm_jax train --config=configs/digits_edm.py --config.num_images=153600 --workdir=runs/longer
  python -m cm_jax train --workdir=runs/edm                             # goes on with the stored config
  python -m cm_jax train --workdir=runs/edm --config.run.num_steps=600  # stops there; without it, at the end

--dry_run lists every key of the config; what those of a component mean its class says, cm_jax/networks/*.py.
config.num_images is the length of a run: learning rate, curricula and stages follow it and the batch size.
The same command runs on one CPU, on all devices of a machine, and on every host of a pod.
"""

import contextlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from cm_jax.cli import signals
from cm_jax.cli.flags import define_here, is_main, start
from cm_jax.cli.header import described, ended, keys
from cm_jax.errors import UserError, damage_told, renamed
from cm_jax.notices import notice
from cm_jax.training import peers
from cm_jax.training.goodput import Goodput

if TYPE_CHECKING:
  import ml_collections

  from cm_jax.models import Experiment
  from cm_jax.training.loop import Hook, Measure
  from cm_jax.types import TrainState


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = (
    "The config file, FILE.py or FILE.py:ARGUMENT; --config.key=value overrides any key, of components too."
  )
  define_here(values, "config", text)
  text = "Where the run lives: config.json, checkpoints/, metrics.jsonl, samples/, snapshots/."
  flags.DEFINE_string("workdir", None, text, flag_values=values)
  flags.DEFINE_string(
    "teacher", None, "Run or weights folder of the teacher (config.teacher.path).", flag_values=values
  )
  flags.DEFINE_string(
    "init", None, "Run or weights folder to start from (config.init.path).", flag_values=values
  )
  text = "Show how far it is: in a bar, or without a terminal in a line each config.run.log_every steps."
  flags.DEFINE_bool("progress", True, text, flag_values=values)
  text = "Check everything, say what would be trained, list every key of the config with its value, and stop."
  flags.DEFINE_bool("dry_run", False, text, flag_values=values)


def main(values: flags.FlagValues, overrides: Sequence[str]) -> None:
  """Build, train, save sample grids and snapshots, diagnose."""
  if not values.workdir and not values.dry_run:
    raise UserError("workdir", "", "the folder the run lives in")
  goodput = Goodput()
  config = read(values, overrides)
  start(agree_on_the_end=True)
  peers.agree("command", shared_facts(config, values.workdir))
  import jax

  from cm_jax.assembly.best import criterion_of
  from cm_jax.assembly.experiment import build
  from cm_jax.assembly.resume import reconcile
  from cm_jax.diffusion.pixels import is_latent
  from cm_jax.storage import run as run_lib
  from cm_jax.training import loop, sharding
  from cm_jax.training.averages import snapshots
  from cm_jax.training.checkpoint import CheckpointStore
  from cm_jax.training.diagnostics.hook import Diagnostics

  if values.dry_run:
    experiment = build(reconcile(config, run_lib.read_config(values.workdir) if values.workdir else None))
    print("\n".join([*described(experiment), *keys(experiment.config)]))
    return
  run_lib.check_entries(values.workdir)
  resumes = bool(CheckpointStore(values.workdir).steps())
  # what only a file of the run says may be of any form; a fault in a config file is not a file's damage
  file = str(run_lib.RunFolder.at(values.workdir).config)
  stored = damage_told(file, "the config that training wrote")
  with contextlib.nullcontext() if values.config else stored:
    experiment = build(reconcile(config, run_lib.read_config(values.workdir)), resumes)
  peers.agree("data", {"data fingerprint": experiment.source.fingerprint})
  notice(*experiment.cautions)
  run = experiment.config.run
  draws = run.num_samples and not is_latent(experiment.method.image_shape)  # latents are no picture
  hooks = [(run.sample_every, sample_grids(experiment, values.workdir))] if draws else []
  if run.diagnose_every:
    hooks.append((run.diagnose_every, Diagnostics(experiment, values.workdir)))
  if run.snapshot_every:
    hooks.append((run.snapshot_every, snapshots.recorder(experiment, values.workdir)))
  measures = [(run.evaluate.every, measure(experiment))] if run.evaluate.every else []
  begun: list[int] = []
  with signals.at_a_boundary() as boundary:
    calls = itertools.count(1)  # unlike steps, they never go back
    agreed = (lambda step: sharding.preempted(next(calls))) if jax.distributed.is_initialized() else None

    def began(step: int) -> None:
      begun.append(step)
      if is_main():
        print("\n".join(described(experiment, step)), flush=True)
      boundary.begin(by_jax=agreed is not None)

    stopped = agreed or (lambda step: boundary.reached())
    criterion = criterion_of(run.evaluate) if run.evaluate.every else None
    state = loop.train(
      experiment, values.workdir, hooks, values.progress, began, stopped, measures, goodput, criterion
    )
    if int(state.step) < experiment.method.num_steps:
      raise boundary.end(f"stopped at step {int(state.step)}, saved; the same command goes on")
  if is_main():
    print("\n".join(ended(experiment, values.workdir, int(state.step), goodput if begun else None)))


def read(values: flags.FlagValues, overrides: Sequence[str]) -> "ml_collections.ConfigDict":
  """Return the config of --config, or that of the run in --workdir, with its overrides and --teacher and
  --init.

  Raises:
    UserError: Neither is there, or a key is not; data that only the run's own config says is code.
  """
  from cm_jax.cli.config_flags import check_code_is_given, override, read_file, read_stored
  from cm_jax.storage import published

  config = override(read_file(values.config) if values.config else read_stored(values.workdir), overrides)
  if not values.config:
    check_code_is_given(config, overrides)
  for section, path in (("teacher", values.teacher), ("init", values.init)):
    if path is not None:
      if section not in config:
        raise UserError(f"config.{section}", "", "set: start from cm_jax.config.default()")
      with renamed("model", f"--{section}"):
        config[section].path = str(published.pinned(path))
      if not values.config and published.is_weights(path):
        config[section].step = -1  # the run's own step of it is that of a run
  return config


def measure(experiment: "Experiment") -> "Measure":
  """Return what `config.run.evaluate` asks for: a metric of the samples of the first sampling average.

  Raises:
    UserError: It does not fit the run.
  """
  from cm_jax.assembly.data import framing_of
  from cm_jax.errors import within
  from cm_jax.evaluation.during import During, sampler_of
  from cm_jax.training.averages.track import read_average

  config, asked, average = (
    experiment.config,
    experiment.config.run.evaluate,
    next(iter(experiment.config.averages)),
  )
  model = experiment.model({})
  batch_size = max(config.batch_size // config.accumulation, 1)
  with within("config.run.evaluate"):
    sampler = sampler_of(model, experiment.method.sampler, asked.nfe)
    during = During(
      model, sampler, config.data.source, framing_of(config), asked.metric, asked.features, asked.num,
      config.seed, batch_size, experiment.mesh,
    )  # fmt: skip
  return lambda step, state: during(read_average(state.opt_state, average))


def shared_facts(config: "ml_collections.ConfigDict", workdir: str) -> dict[str, object]:
  """Return what has to be the same on every host of a run: the config with its overrides, the code, the
  versions, JAX's settings and devices."""
  import jax

  from cm_jax.cli.environment import OURS
  from cm_jax.config import plain_json
  from cm_jax.evaluation.records import provenance

  def flat(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict) or not value:
      return {name: value}
    return {path: leaf for key, inner in value.items() for path, leaf in flat(f"{name}.{key}", inner).items()}

  settings = (*OURS, "jax_default_matmul_precision")
  made_by = provenance()
  return {
    **flat("config", plain_json(config)),
    **flat("version", made_by["versions"]),
    **{name.upper(): str(getattr(jax.config, name)) for name in settings},
    "commit": made_by["commit"],
    "device": jax.devices()[0].device_kind,
    "--workdir": workdir,
  }


def sample_grids(experiment: "Experiment", workdir: str) -> "Hook":
  """Return the hook that writes a grid of samples of the first sampling average, always from the same
  noise."""
  import numpy as np

  from cm_jax.sampling.generate import generate, make_generator
  from cm_jax.sampling.labels import class_titles
  from cm_jax.storage.pictures import save_grid
  from cm_jax.storage.run import RunFolder
  from cm_jax.training.averages.track import read_average

  config, method, folder = experiment.config, experiment.method, RunFolder.at(workdir)
  num, name, seed = config.run.num_samples, next(iter(config.averages)), config.seed
  generator = make_generator(experiment.model({}), method.sampler)
  titles = class_titles(method.num_classes, config.data.class_names, num)

  def save(step: int, state: "TrainState") -> None:
    average = read_average(state.opt_state, name)
    batches = generate(generator, average, range(num), method.num_classes, num, experiment.mesh, seed=seed)
    images = np.concatenate(list(batches))
    if is_main():
      save_grid(images, folder.grid_of_step(step), titles=titles)

  return save
