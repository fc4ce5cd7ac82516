"""Metrics of a run: kept on the device between log steps, then to `metrics.jsonl`,
TensorBoard and the progress bar."""

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.notices import notice
from cm_jax.storage import lines
from cm_jax.storage.run import RunFolder
from cm_jax.training.bins import bin_names
from cm_jax.training.board import Board
from cm_jax.training.health import Health
from cm_jax.types import Metrics, Schedule


def summarize(steps: list[dict[str, Any]], states: Sequence[str] = ()) -> dict[str, float]:
  """Return the scalars of a stretch of steps: means, the last values of `states`,
  and means per noise-level bin.

  Non-finite steps, which the guard skipped, do not enter the means.
  A bin that no example fell in is left out.
  """
  finite = [metrics for metrics in steps if math.isfinite(float(metrics["loss"]))] or steps
  quantities = [
    name.removeprefix("bin_") for name in steps[-1] if name.startswith("bin_") and name != "bin_count"
  ]
  counts = sum(m["bin_count"] for m in finite)
  bins: list[tuple[str, Any, Any]] = []
  for quantity in quantities:
    bins += zip(bin_names(quantity), sum(m[f"bin_{quantity}"] for m in finite), counts, strict=True)
  scalars = {name: float(steps[-1][name]) for name in steps[-1] if name in states}
  means = [name for name in steps[-1] if name not in states and not name.startswith("bin_")]
  scalars |= {name: float(np.mean([m[name] for m in finite])) for name in means}
  return scalars | {name: float(total / count) for name, total, count in bins if count > 0}


class MetricsLog:
  """Collects the metrics of steps and writes them out at log steps (on one process only).

  Args:
    workdir: The run folder. Lines of steps after `start` are from a run that was cut off, and are dropped.
    start: The step training starts after.
    num_steps: The step it ends at.
    batch_size: Images a step.
    states: Metrics whose last value counts; of the others it is the mean.
    progress: Show step, rate, time left and loss: in a bar, or without a terminal in a line a log step.
    kept: For `Health`.
    learning_rate: Of a step; logged as that of the last step before.

  Attributes:
    health: What it sees.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    start: int,
    num_steps: int,
    batch_size: int,
    states: Sequence[str] = (),
    progress: bool = True,
    kept: Callable[[int], int | None] = lambda step: None,
    learning_rate: Schedule | None = None,
  ):
    from tqdm import tqdm

    self._run, self._batch_size, self._last_step = RunFolder.at(workdir), batch_size, start
    self._pending: list[Metrics] = []
    self.health = Health(kept)
    self._states = tuple(states)
    self._clock: float | None = None
    self._main = jax.process_index() == 0
    self._journal = lines.Journal(self._run.metrics)
    self._board = Board(self._run.tensorboard) if self._main else None
    self._bar = tqdm(
      total=num_steps,
      initial=start,
      desc=self._run.path.name,
      unit="step",
      dynamic_ncols=True,
      disable=not (progress and self._main and sys.stderr.isatty()),
    )
    self._prints = progress and self._main and self._bar.disable
    self._num_steps, self._learning_rate = num_steps, learning_rate
    if self._main:
      damaged = lines.drop_after(self._run.metrics, start)
      if damaged:
        notice(f"{self._run.metrics}: {damaged} damaged lines are left out")
    for _, row in lines.by_step(self._run.metrics):  # on every process, so that all keep the same checkpoints
      if row is not None and row["step"] <= start:
        self.health.see(start, row, quiet=True)

  def add(self, metrics: Metrics) -> None:
    """Take one step's metrics, without waiting for the device."""
    self._pending.append(metrics)
    self._bar.update()
    if self._clock is None:
      # The first step compiles; rates are of the steps after it.
      first = {"loss": float(jax.block_until_ready(metrics["loss"]))}
      if not self._last_step:
        self.health.see(1, first)
      self._clock, self._last_step = time.perf_counter(), self._last_step + 1

  def write(
    self, step: int, seconds: float, measures: Sequence[Callable[[], Mapping[str, float]]] = ()
  ) -> dict[str, float]:
    """Write what came since the last call: one JSON line, TensorBoard scalars, the bar.

    Args:
      step: After which it is.
      seconds: Of training so far.
      measures: What else is measured of this step; the rate does not count their time.

    Returns:
      The scalars of the line; on every process, though one writes it.
    """
    scalars = summarize(jax.device_get(self._pending), self._states)
    self._pending = []
    now = time.perf_counter()
    if step > self._last_step and self._clock is not None:
      scalars["images_per_second"] = (step - self._last_step) * self._batch_size / (now - self._clock)
    if self._learning_rate is not None:
      scalars["learning_rate"] = float(self._learning_rate(step - 1))
    for measure in measures:
      scalars |= measure()
    self._clock, self._last_step = time.perf_counter() if measures else now, step
    self.health.see(step, scalars)
    self._bar.set_postfix(loss=f"{scalars['loss']:.4g}", refresh=False)
    if not self._main:
      return scalars
    if self._prints:
      print(self._line(step, scalars), file=sys.stderr, flush=True)
    clean = lines.finite(scalars)
    self._journal.append([{"step": step, "seconds": seconds, **clean}])
    with self._tolerant():
      if self._board is not None:
        self._board.write(step, clean)
    return scalars

  def _line(self, step: int, scalars: Mapping[str, float]) -> str:
    """Return what the bar would show, for a log that is no terminal."""
    parts = [f"step {step:,} of {self._num_steps:,}", f"loss {scalars['loss']:.4g}"]
    parts += [f"learning rate {scalars['learning_rate']:.3g}"] if "learning_rate" in scalars else []
    rate = scalars.get("images_per_second")
    if rate:
      left = round((self._num_steps - step) * self._batch_size / rate)
      parts += [f"{rate:,.4g} images/s", f"{datetime.timedelta(seconds=left)} left"]
    return f"{self._run.path.name}: {', '.join(parts)}"

  def flush(self) -> None:
    """Write every line so far: a checkpoint is to come after those of its steps.

    Raises:
      UserError: The place cannot be written.
    """
    self._journal.flush()

  def close(self) -> None:
    """Flush and end the bar."""
    self._bar.close()
    self.flush()
    with self._tolerant():
      if self._board is not None:
        self._board.close()

  @contextlib.contextmanager
  def _tolerant(self) -> Iterator[None]:
    """Go on without TensorBoard, which nothing depends on, when it cannot be written."""
    try:
      yield
    except (OSError, UserError) as error:
      notice(f"{self._run.tensorboard}: {error}; training goes on without TensorBoard")
      self._board = None
