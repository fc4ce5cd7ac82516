"""The position is the step: the same global batches for any process count, from any start."""

import threading

import numpy as np
import pytest

from cm_jax.data.pipeline import Pipeline, epoch_order, prefetch
from cm_jax.errors import UserError

SIZE = 50
IMAGES = np.arange(SIZE * 4, dtype=np.uint8).reshape(SIZE, 2, 2, 1)
LABELS = np.arange(SIZE, dtype=np.int32)


def pipeline(batch_size=16, seed=3, **process):
  return Pipeline(IMAGES, LABELS, batch_size, seed, **process)


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
  order = np.concatenate([pipeline(batch_size).rows(step) for step in range(steps)])[: 3 * SIZE].reshape(3, SIZE)
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
    for _ in prefetch(Broken(IMAGES, LABELS, 16, 0), 0, 10):
      seen += 1
  assert seen == 3 and not data_threads()


def test_bad_input():
  with pytest.raises(UserError, match=r"config\.batch_size = 9"):
    pipeline(9, process_count=2)
  with pytest.raises(UserError, match=r"config\.batch_size = 0"):
    pipeline(0)
  with pytest.raises(UserError, match=r"config\.seed"):
    pipeline(seed=-1)
