"""Neighbours in the training set are those of brute force, and the picture shows them beside the samples."""

import numpy as np
import pytest
from PIL import Image

from cm_jax.errors import UserError
from cm_jax.evaluation.features.base import Extracted
from cm_jax.evaluation.memorisation import check_by, nearest, save_neighbours

rng = np.random.default_rng(8)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_nearest_is_brute_force_with_ties(block):
  samples, known = (rng.integers(0, 4, (n, 2, 3, 1), dtype=np.uint8) for n in (9, 31))
  squared = ((samples[:, None].astype(float) - known[None]) ** 2).sum((2, 3, 4))
  exact = np.argsort(squared, 1, kind="stable")[:, :5]
  np.testing.assert_array_equal(nearest(samples, known, 5, block), exact)


def test_the_picture_shows_copies_beside_the_samples(tmp_path):
  train = rng.integers(0, 256, (20, 50, 48, 3), dtype=np.uint8)
  near = save_neighbours(tmp_path / "near.png", train[[3, 11]], train, columns=4)
  assert near.shape == (2, 4) and near[:, 0].tolist() == [3, 11]
  sheet = np.asarray(Image.open(tmp_path / "near.png"))
  assert sheet.shape == (2 * 100 + 6, 5 * 96 + 4 * 6, 3)
  np.testing.assert_array_equal(sheet[106:, 102:198][::2, ::2], train[11])
  np.testing.assert_array_equal(sheet[:100, 204:300][::2, ::2], train[near[0, 1]])


def test_by_features(tmp_path):
  brightness = lambda images: Extracted(images.mean((1, 2)).astype(np.float32))
  train = np.arange(0, 200, 10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
  sample = np.zeros((1, 4, 4, 1), np.uint8)
  sample[:, :2] = 122  # as bright as 61, though no pixel is
  assert save_neighbours(tmp_path / "f.png", sample, train, brightness, 2).tolist() == [[6, 7]]


def test_by_something_else():
  with pytest.raises(UserError, match="nearest = eyes"):
    check_by("eyes")
