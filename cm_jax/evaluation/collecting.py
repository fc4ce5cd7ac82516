"""What is kept of images while they pass by: moments always, rows only where a metric asks for them."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping

import jax
import numpy as np

from cm_jax.evaluation import hosts
from cm_jax.evaluation.features.base import Extractor
from cm_jax.evaluation.moments import Moments
from cm_jax.notices import progress_bar

MOMENTS = {"moments": "features", "spatial_moments": "spatial"}  # and what they are of
ROWS = ("features", "logits", "spatial", "images")
CHUNK = 256  # images that are measured at a time, whatever batches they come in


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
  """What is known of a set of images.

  Attributes:
    count: Images.
    moments: Of the features, and by "spatial_moments" of the spatial ones: what was asked for.
    rows: What was asked for of features, logits, spatial [N,D] float32 and images uint8 [N,H,W,C].
  """

  count: int = 0
  moments: Mapping[str, Moments] = dataclasses.field(default_factory=dict)
  rows: Mapping[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)

  def added(self, images: np.ndarray, extractor: Extractor, needs: Collection[str]) -> "Collected":
    """Return what is known with more images, uint8 [n,H,W,C]."""
    wanted = {MOMENTS.get(need, need) for need in needs} - {"images"}
    found: dict[str, np.ndarray | None] = {"images": images}
    if wanted:
      found |= extractor(images, tuple(sorted(wanted - {"features"})))._asdict()
    moments = dict(self.moments)
    rows = dict(self.rows)
    for need in sorted(needs):
      values = found[MOMENTS.get(need, need)]
      assert values is not None
      if need in MOMENTS:
        new = Moments.of(values)
        moments[need] = moments[need].merge(new) if need in moments else new
      else:
        rows[need] = (*rows.get(need, ()), values)
    return Collected(self.count + len(images), moments, rows)

  def whole(self, extractor: Extractor, needs: Collection[str], shape: tuple[int, ...]) -> "Collected":
    """Return what all processes know together, rows in the order of the images, on each of them."""
    empty = {"images": np.zeros((0, *shape), np.uint8)}
    sizes = {name: int(hosts.all_rows(np.array([[self._width(name)]])).max()) for name in sorted(needs)}
    moments = {
      name: hosts.all_moments(self.moments.get(name), sizes[name])
      for name in sorted(needs)
      if name in MOMENTS
    }
    rows = {}
    for name in sorted(set(needs) - set(MOMENTS)):
      none = empty.get(name, np.zeros((0, sizes[name]), np.float32))
      rows[name] = (hosts.all_rows(np.concatenate([none, *self.rows.get(name, ())])),)
    count = int(hosts.all_rows(np.array([self.count])).sum())
    return Collected(count, moments, rows)

  def _width(self, name: str) -> int:
    if name in MOMENTS:
      return len(self.moments[name].mean) if name in self.moments else 0
    return self.rows[name][0].shape[-1] if name in self.rows else 0

  @property
  def spatial_moments(self) -> Moments:
    """Of the spatial features, if they were asked for."""
    return self.moments["spatial_moments"]

  @property
  def features(self) -> np.ndarray:
    """float32 [N,D], if they were asked for."""
    return self._row("features")

  @property
  def logits(self) -> np.ndarray:
    """float32 [N,K], if they were asked for."""
    return self._row("logits")

  @property
  def images(self) -> np.ndarray:
    """uint8 [N,H,W,C], if they were asked for."""
    return self._row("images")

  def _row(self, name: str) -> np.ndarray:
    parts = self.rows[name]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def collect(
  batches: Callable[[int, int], Generator[np.ndarray, None, None]],
  numbers: range,
  extractor: Extractor,
  needs: Collection[str],
  begun: Collected | None = None,
  done: Callable[[Collected], object] = lambda collected: None,
  title: str = "",
  progress: bool = True,
) -> Collected:
  """Measure images as they come; none of them stays, but for rows that are needed.

  Args:
    batches: (start, stop) -> uint8 batches of images start to stop - 1.
    numbers: Which of them this process measures.
    extractor: What measures them.
    needs: What is kept, of `MOMENTS` and `ROWS`.
    begun: Of the first so many of them, from an earlier run.
    done: Called with what is known after each chunk.
    title: Of the progress bar.
    progress: Show it, on the first process.
  """
  collected = begun or Collected()
  shown = progress and jax.process_index() == 0
  bar = progress_bar(total=len(numbers), initial=collected.count, unit="img", desc=title, disable=not shown)
  with bar, contextlib.closing(batches(numbers.start + collected.count, numbers.stop)) as stream:
    for images in chunks(stream, CHUNK):
      collected = collected.added(images, extractor, needs)
      done(collected)
      bar.update(len(images))
  return collected


def chunks(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
  """Yield the rows of batches in chunks of one size, the last with what is left.

  >>> [len(chunk) for chunk in chunks([np.zeros(3), np.zeros(1), np.zeros(5)], 4)]
  [4, 4, 1]
  """
  waiting: list[np.ndarray] = []
  for batch in batches:
    waiting.append(batch)
    while sum(map(len, waiting)) >= size:
      rows = np.concatenate(waiting)
      yield rows[:size]
      waiting = [rows[size:]]
  rest = [rows for rows in waiting if len(rows)]
  if rest:
    yield np.concatenate(rest)
