"""The position is the step: the same global batches for any process count, from any start."""

import threading

import numpy as np
import pytest

from cm_jax.data.pipeline import (
  FromSource,
  InMemory,
  Pipeline,
  batches,
  epoch_order,
  prefetch,
  rows_of,
  stream,
)
from cm_jax.errors import UserError

SIZE = 50
IMAGES = np.arange(SIZE * 4, dtype=np.uint8).reshape(SIZE, 2, 2, 1)
LABELS = np.arange(SIZE, dtype=np.int32)


ROWS = InMemory({"image": IMAGES, "label": LABELS})


def pipeline(batch_size=16, seed=3, **process):
  return Pipeline(ROWS, batch_size, seed, **process)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_process_slices_make_the_same_global_batches_over_three_epochs(count):
  parts = [pipeline(process_index=index, process_count=count) for index in range(count)]
  for step in range(3 * SIZE // 16 + 1):
    local = [part.batch(step) for part in parts]
    whole = pipeline().batch(step)
    for key in ("image", "label"):
      np.testing.assert_array_equal(np.concatenate([batch[key] for batch in local]), whole[key])
    np.testing.assert_array_equal(whole["image"], IMAGES[whole["label"]])


@pytest.mark.parametrize("batch_size", [1, 16, 50, 64, 128])
def test_each_epoch_is_a_permutation_of_its_own(batch_size):
  steps = -(-3 * SIZE // batch_size)
  order = np.concatenate([pipeline(batch_size).rows(step) for step in range(steps)])[: 3 * SIZE].reshape(
    3, SIZE
  )
  np.testing.assert_array_equal(np.sort(order, 1), np.tile(np.arange(SIZE), (3, 1)))
  assert len({tuple(epoch) for epoch in order.tolist()}) == 3


def test_seed_changes_the_order():
  assert (pipeline(seed=3).rows(0) != pipeline(seed=4).rows(0)).any()


def test_order_is_pinned():
  """A run resumed under another numpy must see the same data."""
  assert epoch_order(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_seek_equals_running_there_and_costs_one_epoch():
  running = list(prefetch(pipeline(), 0, 40))
  np.testing.assert_array_equal(pipeline().batch(39)["label"], running[39]["label"])
  epoch_order.cache_clear()
  pipeline().batch(10**12)
  assert epoch_order.cache_info().misses <= 2


@pytest.mark.parametrize("depth", [0, 1, 2, 100])
def test_prefetch_gives_every_batch_in_order(depth):
  for step, batch in enumerate(prefetch(pipeline(), 5, 20, depth), start=5):
    np.testing.assert_array_equal(batch["label"], pipeline().batch(step)["label"])
  assert step == 24


def data_threads():
  return [thread for thread in threading.enumerate() if thread.name.startswith("cm_jax-data")]


def test_prefetch_closes_its_thread():
  batches = prefetch(pipeline(), 0, 1000)
  next(batches)
  assert len(data_threads()) == 1
  batches.close()
  assert not data_threads()


def test_prefetch_raises_the_threads_error():
  class Broken(Pipeline):
    def batch(self, step):
      if step == 3:
        raise UserError("c.png", "unreadable", "a whole file")
      return super().batch(step)

  seen = 0
  with pytest.raises(UserError, match=r"c\.png"):
    for _ in prefetch(Broken(ROWS, 16, 0), 0, 10):
      seen += 1
  assert seen == 3 and not data_threads()


def test_bad_input():
  with pytest.raises(UserError, match="^batch_size = 9"):
    pipeline(9, process_count=2)
  with pytest.raises(UserError, match="^batch_size = 0"):
    pipeline(0)
  with pytest.raises(UserError, match="^seed = -1"):
    pipeline(seed=-1)


class Files:
  """A source like one of files: rows are made when asked for, and it travels to a worker process."""

  num_classes, fingerprint = 50, "f"

  def __init__(self, broken: int | None = None):
    self.broken = broken

  def __len__(self):
    return SIZE

  def __getitem__(self, index):
    if index == self.broken:
      raise UserError("c.png", "unreadable", "a whole file")
    return {"image": IMAGES[index], "label": int(LABELS[index]), "std": np.full((2, 2, 1), index, np.float32)}


def test_a_set_that_fits_is_read_once_and_another_row_by_row():
  nbytes = SIZE * (4 + 16 + 8)
  inside, outside = rows_of(Files(), nbytes / 1e9), rows_of(Files(), (nbytes - 1) / 1e9)
  assert isinstance(inside, InMemory) and isinstance(outside, FromSource)
  rows = np.array([3, 3, 41])
  for name, values in inside.take(rows).items():
    np.testing.assert_array_equal(outside.take(rows)[name], values)
    assert outside.take(rows)[name].dtype == values.dtype
  assert set(inside.take(rows)) == {"image", "label", "std"} and len(inside) == len(outside) == SIZE


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_workers_give_the_batches_that_ram_gives_over_three_epochs_for_any_process_count(count):
  steps = 3 * SIZE // 16 + 1
  for index in range(count):
    where = {"process_index": index, "process_count": count}
    expected = [Pipeline(rows_of(Files(), 1.0), 16, 3, **where).batch(step) for step in range(steps)]
    got = list(batches(Pipeline(FromSource(Files()), 16, 3, **where), 0, steps, workers=2))
    assert len(got) == steps
    for ours, theirs in zip(got, expected, strict=True):
      assert ours.keys() == theirs.keys()
      for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.slow
def test_workers_seek_to_any_step():
  got = list(stream(Pipeline(FromSource(Files()), 16, 3), 10**9, 3, 2))
  for step, batch in enumerate(got, start=10**9):
    np.testing.assert_array_equal(batch["label"], pipeline().batch(step)["label"])


@pytest.mark.slow
def test_a_workers_error_is_named():
  with pytest.raises(UserError, match=r"c\.png = unreadable"):
    list(stream(Pipeline(FromSource(Files(broken=7)), 16, 3), 0, 10, 2))
