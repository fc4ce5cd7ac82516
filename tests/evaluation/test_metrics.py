"""Entropy and nearest neighbours by hand, and the number that real digits have."""

import numpy as np

from cm_jax.data.sources import images, open_source
from cm_jax.evaluation.metrics.class_entropy import class_entropy
from cm_jax.evaluation.metrics.nn_distance import nearest_neighbour_distance

rng = np.random.default_rng(0)


def test_class_entropy():
  logits = np.zeros((8, 3))
  logits[np.arange(8), [0, 0, 0, 0, 1, 1, 2, 2]] = 1
  np.testing.assert_allclose(class_entropy(logits), (0.5 * np.log(2) + 0.5 * np.log(4)) / np.log(3))


def test_nearest_neighbour_is_brute_force():
  samples, train = (rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8) for n in (17, 23))
  a, b = (x.reshape(len(x), -1) / 127.5 - 1 for x in (samples, train))
  exact = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1).mean()
  for block in (1, 5, 1024):
    np.testing.assert_allclose(nearest_neighbour_distance(samples, train, block), exact, rtol=1e-12)
  assert nearest_neighbour_distance(train, train) == 0


def test_real_digits():
  """2.10 in the page of measurements; 2.06 to 2.16 over random splits."""
  train, test = (images(open_source(f"digits:{split}")) for split in ("train", "test"))
  assert 2.0 < nearest_neighbour_distance(test, train) < 2.2
