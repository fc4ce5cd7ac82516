"""Batches of a data set in RAM: the position is the step, the same global batches for any number of processes."""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from cm_jax.errors import UserError


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
  """Return the permutation of one epoch: int64 [size], read-only, a function of its arguments only.

  It sorts raw Philox words: numpy keeps those the same for ever, and `Generator.permutation` only until its next release.

  >>> sorted(epoch_order(5, 0, 3).tolist())
  [0, 1, 2, 3, 4]
  """
  words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(size)
  order = np.argsort(words, kind="stable")
  order.flags.writeable = False
  return order


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """Shuffled batches without end: batch k holds positions k B .. (k+1) B - 1 of the sequence of epochs.

  Every epoch is a permutation of its own, keyed by (seed, epoch); a batch may span epochs, several if the set is smaller than it.
  There is nothing to save: `batch(step)` costs the same for every step.

  Args:
    images: [N, H, W, C], N >= 1; uint8, or float32 latents.
    labels: int32 [N], -1 where unlabelled.
    batch_size: B, of all processes together.
    seed: >= 0.
    process_index, process_count: Which of how many equal, consecutive parts of each batch is this process's.

  Raises:
    UserError: `process_count` does not divide the batch; B < 1; a negative seed.
  """

  images: np.ndarray
  labels: np.ndarray
  batch_size: int
  seed: int
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.process_count:
      raise UserError("config.batch_size", self.batch_size, f"a positive multiple of the {self.process_count} process(es)")
    if self.seed < 0:
      raise UserError("config.seed", self.seed, "0 or more")
    if len(self.images) != len(self.labels) or not len(self.images):
      raise ValueError(f"{len(self.images)} images and {len(self.labels)} labels")

  def rows(self, step: int) -> np.ndarray:
    """Return which rows of the data set this process holds of batch `step`: int64 [B / process_count]."""
    local, size = self.batch_size // self.process_count, len(self.images)
    start = step * self.batch_size + self.process_index * local
    parts = []
    while local:
      epoch, offset = divmod(start, size)
      part = epoch_order(size, self.seed, epoch)[offset : offset + local]
      parts.append(part)
      start, local = start + len(part), local - len(part)
    return np.concatenate(parts)

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Return this process's part of batch `step` (from 0): {"image": [B/P, H, W, C], "label": int32 [B/P]}."""
    rows = self.rows(step)
    return {"image": self.images[rows], "label": self.labels[rows]}


def prefetch(pipeline: Pipeline, start_step: int, num: int, depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
  """Yield batches start_step .. start_step + num - 1, `depth` of them prepared ahead by one background thread.

  An error in the thread is raised at its batch; closing the generator ends the thread.
  """
  pool = concurrent.futures.ThreadPoolExecutor(1, "cm_jax-data")
  try:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for step in range(start_step, start_step + num):
      pending.append(pool.submit(pipeline.batch, step))
      if len(pending) > depth:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
