"""A grid holds every image where a reader expects it."""

import numpy as np
import pytest
from PIL import Image

from cm_jax.data.grids import save_grid


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged(tmp_path, channels):
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
  save_grid(images, tmp_path / "a.png")
  sheet = np.asarray(Image.open(tmp_path / "a.png")).reshape(2 * 50, 3 * 50, channels)
  np.testing.assert_array_equal(sheet[50:98, 50:98][::6, ::6], images[4])
  assert not sheet[50:, 100:].any() and [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_columns_and_scale(tmp_path):
  images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
  save_grid(images, tmp_path / "a.png", columns=2, scale=1)
  sheet = np.asarray(Image.open(tmp_path / "a.png"))
  assert sheet.shape == (6, 4)
  np.testing.assert_array_equal(sheet[2:4, 2:], images[3, :, :, 0])
