"""What an interrupted measurement knows already, in a hidden folder until its records are made."""

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from cm_jax.errors import DAMAGE, UserError
from cm_jax.evaluation.collecting import Collected
from cm_jax.evaluation.moments import Moments
from cm_jax.storage import whole
from cm_jax.storage.sealed import opened, sealed

EVERY = 30.0  # seconds of work that an interruption costs at most
KEPT = 8  # unfinished measurements of a run: the oldest go when there are more
_STATE = "state"


class Partial:
  """The state of one measurement, each process its own.

  Moments are written anew; rows that are kept are added in files of their own, so that no row is written
  twice.

  Args:
    folder: Where it lies; made when it is written. At most `KEPT` lie there.
    images: Which images are measured, and by what network: plain JSON.
    request: What of them, plain JSON: another measurement has another place.
    every: Seconds between two writings.
    clock: Of them.
  """

  def __init__(
    self,
    folder: epath.Path,
    images: Mapping[str, Any],
    request: Mapping[str, Any],
    every: float = EVERY,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._top, self._images = folder, _digest(images)
    name = f"{self._images}-{_digest(request)}"
    self._folder = folder / f"{name}-{jax.process_index()}of{jax.process_count()}"
    self._every, self._clock = every, clock
    self._last, self._saved = clock(), 0

  def load(self) -> Collected | None:
    """Return what was known when it was last written; None if nothing is, or it is damaged."""
    try:
      with np.load(io.BytesIO(opened(self._folder / _STATE)), allow_pickle=False) as state:
        count = int(state["count"])
        names = sorted({name.split(".")[0] for name in state.files if "." in name})
        read = lambda name: Moments(
          int(state[f"{name}.count"]), state[f"{name}.mean"], state[f"{name}.scatter"]
        )
        moments = {name: read(name) for name in names}
      rows = self._rows(count)
    except (OSError, UserError, *DAMAGE):
      return None
    self._saved = count
    return Collected(count, moments, rows)

  def _rows(self, count: int) -> dict[str, tuple[np.ndarray, ...]]:
    found: dict[str, tuple[np.ndarray, ...]] = {}
    start = 0
    while start < count and self._file(start).exists():
      with np.load(io.BytesIO(opened(self._file(start))), allow_pickle=False) as file:
        parts = {name: file[name] for name in file.files}
      for name, part in parts.items():
        found[name] = (*found.get(name, ()), part)
      start += max(map(len, parts.values()))
    if found and start != count:
      raise ValueError("rows that are not there")
    return found

  def _file(self, start: int) -> epath.Path:
    return self._folder / f"rows_{start:09d}"

  def note(self, collected: Collected) -> None:
    """Write what is known, if it is time to."""
    if self._clock() - self._last >= self._every:
      self.save(collected)

  def save(self, collected: Collected) -> None:
    """Write what is known: the rows first, the count of them last.

    Raises:
      UserError: The disk is full; what was written before stays good.
    """
    if collected.count <= self._saved:
      return
    if not self._saved:
      mine = self._folder.name.rpartition("-")[0]  # another process may have written
      for name in [name for name in unfinished(self._top) if name != mine][KEPT - 1 :]:
        _remove(self._top, name)
    if whole.is_local(self._folder):
      self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if collected.rows:
      parts = {name: np.concatenate(rows)[self._saved :] for name, rows in collected.rows.items()}
      whole.write(self._file(self._saved), sealed(_packed(parts)))
    state: dict[str, Any] = {"count": np.int64(collected.count)}
    for name, moments in collected.moments.items():
      about = {"count": np.int64(moments.count), "mean": moments.mean, "scatter": moments.scatter}
      state |= {f"{name}.{key}": value for key, value in about.items()}
    whole.write(self._folder / _STATE, sealed(_packed(state)))
    self._last, self._saved = self._clock(), collected.count

  def clear(self, done: int = 0) -> None:
    """Remove it: the records are made; and what other measurements of the same images by the same network
    left behind that had come no further.

    Args:
      done: Images that were measured.
    """
    _remove(self._top, self._folder.name)
    for name in unfinished(self._top):
      if name.startswith(f"{self._images}-") and _count(self._top, name) <= done:
        _remove(self._top, name)
    with contextlib.suppress(OSError, ValueError):  # there may be others
      self._top.rmdir()


def unfinished(folder: epath.Path) -> list[str]:
  """Return the names of the measurements in a folder, those of all processes as one, newest first."""
  ages: dict[str, float] = {}
  for path in folder.iterdir() if folder.exists() else ():
    name = path.name.rpartition("-")[0] or path.name
    ages.setdefault(name, 0.0)
    with contextlib.suppress(OSError):  # not written to its end, or removed by another process
      ages[name] = max(ages[name], float((path / _STATE).stat().mtime))
  return sorted(ages, key=lambda name: -ages[name])


def _count(folder: epath.Path, name: str) -> int:
  """Return how many images a measurement that was left knows; 0 of one that is damaged."""
  found = 0
  for path in folder.glob(f"{name}-*"):
    with contextlib.suppress(OSError, UserError, *DAMAGE):
      with np.load(io.BytesIO(opened(path / _STATE)), allow_pickle=False) as state:
        found += int(state["count"])
  return found


def _remove(folder: epath.Path, name: str) -> None:
  """Remove what lies in a folder under a name, of all processes."""
  for path in folder.glob(f"{name}*"):
    with contextlib.suppress(OSError):
      path.rmtree()


def _digest(content: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _packed(arrays: Mapping[str, Any]) -> bytes:
  content = io.BytesIO()
  np.savez(content, allow_pickle=False, **arrays)
  return content.getvalue()
