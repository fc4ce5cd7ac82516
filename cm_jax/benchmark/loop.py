"""What the training loop costs beside its step: input, metrics and waiting, as `train` has them."""

import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from cm_jax.assembly import build
from cm_jax.benchmark.records import Column
from cm_jax.benchmark.timing import ratio, spread
from cm_jax.data.pipeline import Pipeline, batches, rows_of
from cm_jax.errors import UserError
from cm_jax.models import Experiment
from cm_jax.training import loop, sharding
from cm_jax.training.program import Program
from cm_jax.types import TrainState

STEP, TRAIN = "the step alone", "train"
FEWEST = 10  # steps a timing


class _Alone:
  """The train step of an experiment, again and again on one batch that lies on the devices."""

  def __init__(self, experiment: Experiment):
    config, program = experiment.config, Program(experiment)
    rows = rows_of(experiment.source, config.run.ram_gb)
    pipeline = Pipeline(rows, config.batch_size, config.seed, jax.process_index(), jax.process_count())
    batch = sharding.to_global(next(iter(batches(pipeline, 0, 1, 0))), experiment.mesh)
    self._step, self._state = program.step, program.create()
    self._rest = batch, jax.random.key(config.seed), *program.frozen()

  def seconds(self, steps: int) -> float:
    """Return what a step takes, of so many; the next one is handed over before one is waited for."""
    before, last = time.perf_counter(), None
    for _ in range(steps):
      self._state, metrics = self._step(self._state, *self._rest)
      jax.block_until_ready(last)
      last = metrics
    jax.block_until_ready((self._state, last))
    return (time.perf_counter() - before) / steps


def measure(
  config: ml_collections.ConfigDict,
  rounds: int,
  seconds: float = 2.0,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Train in a folder of its own that is removed, and stop every so many steps to time the step alone.

  Two states are held. A stretch of the loop has its own batches and log rows; no checkpoint, no pictures.

  Args:
    config: What is trained, with its data.
    rounds: Timings of each, in turns.
    seconds: How long each of them takes, at least.
    progress: Called after each round.

  Returns:
    Rows `STEP` and `TRAIN` with name, batch, steps (of a timing), images_per_second and its quartiles low and
    high, ms (of a step, the median), x_step (the rate over the step's, median over rounds) and `seconds` of a
    step in every round.

  Raises:
    UserError: The config, its data or its teacher; there are several processes.
  """
  if jax.process_count() > 1:
    raise UserError("what", "loop", "one process: several share no folder that is removed")
  alone = _Alone(build(config))
  alone.seconds(2)  # compiles
  steps = max(FEWEST, math.ceil(seconds / alone.seconds(FEWEST)))
  experiment = build(_of_length(config, steps * (rounds + 1)))
  times: dict[str, list[float]] = {STEP: [], TRAIN: []}
  went_on = 0.0

  def pause(step: int, state: TrainState) -> None:
    nonlocal went_on
    if step > steps:  # the first stretch has compiled
      times[TRAIN].append((time.perf_counter() - went_on) / steps)
      progress()
    if step < experiment.method.num_steps:
      times[STEP].append(alone.seconds(steps))
    went_on = time.perf_counter()

  with tempfile.TemporaryDirectory() as folder:
    loop.train(experiment, folder, [(steps, pause)], progress=False)
  return [_row(name, times, config.batch_size, steps) for name in times]


def _of_length(config: ml_collections.ConfigDict, num_steps: int) -> ml_collections.ConfigDict:
  """Return a config that trains so long and keeps nothing before the end."""
  config = config.copy_and_resolve_references()
  config.num_images = max(config.num_images, num_steps * config.batch_size)
  config.run.num_steps = num_steps
  config.run.checkpoint_every = num_steps + 1
  return config


def _row(name: str, times: dict[str, list[float]], batch: int, steps: int) -> dict[str, Any]:
  took = spread(times[name])
  rates = {"images_per_second": batch / took.median, "low": batch / took.high, "high": batch / took.low}
  compared = {"ms": 1e3 * took.median, "x_step": ratio(times[STEP], times[name])}
  return {"name": name, "batch": batch, "steps": steps, **rates, **compared, "seconds": times[name]}


COLUMNS: dict[str, Column] = {
  "loop": lambda row: row["name"],
  "batch": lambda row: str(row["batch"]),
  "images/s": lambda row: f"{row['images_per_second']:,.1f}",
  "quartiles": lambda row: f"{row['low']:,.1f} to {row['high']:,.1f}",
  "ms a step": lambda row: f"{row['ms']:.2f}",
  "x the step": lambda row: f"{row['x_step']:.3f}",
}
