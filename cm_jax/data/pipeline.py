"""Batches of a data set: the position is the step; the same for any number of processes, in RAM or not."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Generator, Mapping
from typing import Protocol, TypeAlias

import numpy as np

from cm_jax.data import workers as workers_lib
from cm_jax.data.sources import images, labels
from cm_jax.errors import UserError
from cm_jax.types import Source

Batches: TypeAlias = Generator[dict[str, np.ndarray], None, None]  # close it: threads and processes end then


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
  """Return the permutation of one epoch: int64 [size], read-only, a function of its arguments only.

  It sorts raw Philox words: numpy keeps those the same for ever, and `Generator.permutation` only until its
    next release.

  >>> sorted(epoch_order(5, 0, 3).tolist())
  [0, 1, 2, 3, 4]
  """
  words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(size)
  order = np.argsort(words, kind="stable")
  order.flags.writeable = False
  return order


class Rows(Protocol):
  """A data set by rows: `take(rows)` gives {"image": [n,H,W,C], "label": int32 [n], what else there is}."""

  def take(self, rows: np.ndarray, /) -> dict[str, np.ndarray]: ...

  def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
  """Arrays of N rows each: a batch is gathered at once.

  Args:
    arrays: "image" [N, H, W, C], uint8, or float32 latents; "label" int32 [N], -1 where unlabelled; what else
      an item holds.
  """

  arrays: Mapping[str, np.ndarray]

  def __post_init__(self):
    sizes = {name: len(array) for name, array in self.arrays.items()}
    if len(set(sizes.values())) != 1 or not max(sizes.values()):
      raise ValueError(f"rows {sizes}")

  def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows."""
    return {name: array[rows] for name, array in self.arrays.items()}

  def __len__(self) -> int:
    return len(self.arrays["image"])


@dataclasses.dataclass(frozen=True, eq=False)
class FromSource:
  """A source whose images are decoded when a batch needs them."""

  source: Source

  def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Decode the rows, one after the other: the processes around this one are what runs side by side."""
    items = [self.source[int(row)] for row in rows]
    batch = {name: np.stack([item[name] for item in items]) for name in items[0] if name != "label"}
    return batch | {"label": np.array([item["label"] for item in items], np.int32)}

  def __len__(self) -> int:
    return len(self.source)


def rows_of(source: Source, ram_gb: float) -> InMemory | FromSource:
  """Return a source's rows: decoded once into RAM if `ram_gb` gigabytes hold them, else when needed."""
  item = source[0]
  if len(source) * sum(np.asarray(value).nbytes for value in item.values()) > ram_gb * 1e9:
    return FromSource(source)
  arrays = {"image": images(source), "label": labels(source)}
  for name in item.keys() - arrays.keys():
    arrays[name] = np.stack([source[index][name] for index in range(len(source))])
  return InMemory(arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
  """Shuffled batches without end: batch k holds positions k B .. (k+1) B - 1 of the sequence of epochs.

  Every epoch is a permutation of its own, keyed by (seed, epoch); a batch may span epochs, several if the set
  is smaller than it. There is nothing to save: `batch(step)` costs the same for every step.

  Args:
    data: N >= 1 rows.
    batch_size: B, of all processes together.
    seed: >= 0.
    process_index, process_count: Which of how many equal, consecutive parts of each batch is this process's.

  Raises:
    UserError: `process_count` does not divide the batch; B < 1; a negative seed.
  """

  data: Rows
  batch_size: int
  seed: int
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.process_count:
      expected = f"a positive multiple of the {self.process_count} process(es)"
      raise UserError("batch_size", self.batch_size, expected)
    if self.seed < 0:
      raise UserError("seed", self.seed, "0 or more")

  def rows(self, step: int) -> np.ndarray:
    """Return which rows of the data set this process holds of batch `step`: int64 [B / process_count]."""
    local, size = self.batch_size // self.process_count, len(self.data)
    start = step * self.batch_size + self.process_index * local
    parts = []
    while local:
      epoch, offset = divmod(start, size)
      part = epoch_order(size, self.seed, epoch)[offset : offset + local]
      parts.append(part)
      start, local = start + len(part), local - len(part)
    return np.concatenate(parts)

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Return this process's part of batch `step` (from 0): B / process_count rows."""
    return self.data.take(self.rows(step))


def batches(pipeline: Pipeline, start_step: int, num: int, workers: int = 0) -> Batches:
  """Yield `num` batches from start_step on, prepared ahead: rows in RAM by one thread, others by processes.

  Args:
    pipeline: What to take them from.
    start_step: From 0.
    num: How many.
    workers: Processes that decode; 0 for none, then one thread does it.
  """
  if workers and isinstance(pipeline.data, FromSource):
    return stream(pipeline, start_step, num, workers)
  return prefetch(pipeline, start_step, num)


def prefetch(pipeline: Pipeline, start_step: int, num: int, depth: int = 2) -> Batches:
  """Yield `num` batches from start_step on, `depth` of them prepared ahead by one background thread.

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


def stream(pipeline: Pipeline, start_step: int, num: int, workers: int, ahead: int = 2) -> Batches:
  """Yield the same `num` batches, in order, decoded by grain's worker processes, `ahead` batches by each.

  A worker makes whole batches, so that grain's cost per element is paid once a batch. Seeking is a range that
  begins elsewhere.

  Raises:
    UserError: What went wrong in a worker.
  """
  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():  # grain asks the global flags, which nobody here uses
    flags.FLAGS.mark_as_parsed()
  steps = grain.MapDataset.range(start_step, start_step + num).map(pipeline.batch)
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  processes = grain.MultiprocessingOptions(num_workers=min(workers, num), per_worker_buffer_size=ahead)
  attend = functools.partial(workers_lib.attend, os.getpid())
  iterator = iter(steps.to_iter_dataset(reading).mp_prefetch(processes, attend))
  # Out of the shared memory, which is not the reader's to keep.
  own = lambda batch: {name: np.array(array) for name, array in batch.items()}
  try:
    with workers_lib.starting():
      first = own(next(iterator))
    yield first
    yield from map(own, iterator)
  finally:
    iterator.close()
