"""Goodput: what share of a run's wall time went into steps that count, and what took the rest.

The clock is the host's, while the devices work on what they were given before. So the host's wait for a batch
counts only from when the devices had nothing left to do: data that come in time cost nothing, however often
they are waited for.
"""

import contextlib
import datetime
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# What time is spent on; together all of it, of every process that went on with the run.
PARTS = {
  "steps": "dispatching steps and waiting for the devices",
  "compile": "tracing and compiling the step",
  "input": "devices that wait for a batch",
  "checkpoint": "what a save keeps the loop waiting",
  "restore": "reading the checkpoint that a run goes on from",
  "evaluation": "everything that is done each so many steps beside training: samples, diagnostics, snapshots",
  "logging": "writing metrics",
  "setup": "starting: devices, data, teacher",
  "lost": "steps that were done again after a kill or a rollback, and the start of a process that was killed",
}
_UNDONE = ("steps", "input", "checkpoint", "evaluation", "logging")  # what is in vain when steps are


class Goodput:
  """A clock that is always at one of `PARTS`; it begins at "setup".

  Args:
    now: Seconds of a clock that does not go back.

  >>> seconds = iter([0.0, 1.0, 8.0, 8.5, 10.0])
  >>> goodput = Goodput(lambda: next(seconds))
  >>> goodput.enter("steps")
  >>> with goodput.spent("checkpoint"):
  ...   pass
  >>> goodput.told()
  'wall time 0:00:10: steps 85.0 %, setup 10.0 %, checkpoint 5.0 %'
  """

  def __init__(self, now: Callable[[], float] = time.perf_counter):
    self._now, self._part, self._since = now, "setup", now()
    self._seconds = dict.fromkeys(PARTS, 0.0)
    self._devices = _Devices(now)  # of the last `inputs`

  def enter(self, part: str) -> None:
    """Spend the time from now on on a part, one of `PARTS`."""
    now = self._now()
    self._seconds[self._part] += now - self._since
    self._part, self._since = part, now

  @contextlib.contextmanager
  def spent(self, part: str) -> Iterator[None]:
    """Spend the time of a block on a part, then go on with the one before."""
    before = self._part
    self.enter(part)
    try:
      yield
    finally:
      self.enter(before)

  def handed(self, result: Any) -> None:
    """Take a result of the step that the devices were given last, for one of the batches of `inputs`."""
    self._devices.follow(result)

  def inputs(self, batches: Iterable[T]) -> Iterator[T]:
    """Yield batches; what the devices have to wait for one is "input"."""
    iterator = iter(batches)
    with contextlib.closing(_Devices(self._now)) as self._devices:
      while True:
        begin = self._now()
        try:
          batch = next(iterator)
        except StopIteration:
          return
        idle = max(0.0, self._now() - max(begin, self._devices.idle_since()))
        self._seconds["input"] += idle
        self._since += idle
        yield batch

  def go_on(self, before: Mapping[str, Any], until: float) -> None:
    """Take over from the process before.

    Args:
      before: Its `seconds` at the checkpoint that is gone on from; of parts that are none today, nothing.
      until: Wall seconds at its last sign of life. What lies between is lost.
    """
    taken = {part: float(before[part]) for part in PARTS if _is_duration(before.get(part))}
    for part, seconds in taken.items():
      self._seconds[part] += seconds
    self._seconds["lost"] += max(0.0, until - sum(taken.values()))

  def undo(self, before: Mapping[str, Any]) -> None:
    """Call lost what has been spent on steps, and beside them, since a checkpoint that a run goes back to.

    What was compiled, restored and set up since then goes on being of use.

    Args:
      before: `seconds` at that checkpoint; of parts that it does not know, nothing.

    >>> seconds = iter([0.0, 0.0, 9.0, 9.0])
    >>> goodput = Goodput(lambda: next(seconds))
    >>> goodput.enter("steps")
    >>> goodput.undo({"steps": 2.0})
    >>> goodput.told()
    'wall time 0:00:09: steps 22.2 %, lost 77.8 %'
    """
    self.enter(self._part)
    for part in _UNDONE:
      kept = float(before[part]) if _is_duration(before.get(part)) else 0.0
      self._seconds["lost"] += max(0.0, self._seconds[part] - kept)
      self._seconds[part] = min(self._seconds[part], kept)

  def seconds(self) -> dict[str, float]:
    """Return the seconds spent on each part so far."""
    self.enter(self._part)
    return dict(self._seconds)

  def scalars(self) -> dict[str, float]:
    """Return the wall seconds so far and the share of each part, for a log line: they add up to 1."""
    seconds = self.seconds()
    wall = sum(seconds.values())
    return {"wall_seconds": wall} | {
      f"share_{part}": spent / wall if wall else 0.0 for part, spent in seconds.items()
    }

  def told(self) -> str:
    """Return the shares as a line, the largest first, without what took no time to speak of."""
    seconds = self.seconds()
    wall = sum(seconds.values())
    shares = {part: spent / wall for part, spent in seconds.items() if wall and spent >= 0.0005 * wall}
    rest = sorted((part for part in shares if part != "steps"), key=lambda part: -shares[part])
    parts = [f"{part} {100 * shares.get(part, 0.0):.1f} %" for part in ("steps", *rest)]
    return f"wall time {datetime.timedelta(seconds=round(wall))}: {', '.join(parts)}"


def wall_seconds(rows: Iterable[Mapping[str, Any] | None]) -> float:
  """Return the wall seconds of the last log line that tells them; 0 if none does.

  >>> wall_seconds([{"step": 1, "wall_seconds": 3.5}, None, {"step": 3}])
  3.5
  """
  told = [row["wall_seconds"] for row in rows if row and _is_duration(row.get("wall_seconds"))]
  return float(told[-1]) if told else 0.0


class _Devices:
  """Notes when the devices have done all they were given.

  A thread waits for them, since nothing else can tell, afterwards, when they were done. It is a daemon: what
  keeps the devices from ever being done must not keep the process.
  """

  def __init__(self, now: Callable[[], float]):
    self._now, self._given, self._done, self._at = now, 0, 0, -math.inf
    self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()

  def follow(self, result: Any) -> None:
    if not self._given:
      threading.Thread(target=self._wait, name="cm_jax-goodput", daemon=True).start()
    self._given += 1
    self._results.put(result)

  def idle_since(self) -> float:
    """Return since when they have nothing to do: inf if they have, -inf if they never had."""
    return self._at if self._done == self._given else math.inf

  def close(self) -> None:
    """End the thread once they are done."""
    self._results.put(None)

  def _wait(self) -> None:
    while (result := self._results.get()) is not None:
      # What went wrong on a device is raised where the result is used.
      with contextlib.suppress(Exception):
        result.block_until_ready()
      self._at = self._now()
      self._done += 1


def _is_duration(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value) and value >= 0
