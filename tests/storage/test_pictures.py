"""A grid holds every image where a reader expects it."""

import io

import numpy as np
import pytest
from PIL import Image

from cm_jax.errors import UserError
from cm_jax.storage.pictures import corner_of_grid, encode_png, log_axis, new_figure, save_figure, save_grid
from tests.storage.places import disk_of, names


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged(tmp_path, channels):
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
  save_grid(images, tmp_path / "a.png")
  sheet = np.asarray(Image.open(tmp_path / "a.png")).reshape(2 * 98, 3 * 98, channels)
  np.testing.assert_array_equal(sheet[98:194, 98:194][::12, ::12], images[4])
  np.testing.assert_array_equal(corner_of_grid(tmp_path / "a.png", 1).reshape(98, 98, -1), sheet[:98, :98])
  assert (sheet[98:, 196:] == 128).all() and (sheet[:, 96:98] == 128).all()
  assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_columns_and_scale(tmp_path):
  images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
  save_grid(images, tmp_path / "a.png", columns=2, scale=1)
  sheet = np.asarray(Image.open(tmp_path / "a.png"))
  assert sheet.shape == (6, 4)
  np.testing.assert_array_equal(sheet[2:4, 2:], images[3, :, :, 0])


def test_pictures_are_whole_anywhere(place):
  save_grid(np.zeros((3, 4, 4, 3), np.uint8), place / "deep" / "grid.png")
  figure = new_figure(2, 2)
  figure.subplots().plot([1, 2], [1, 4])
  save_figure(figure, place / "deep" / "figure.png")
  assert names(place) == ["deep/figure.png", "deep/grid.png"]
  for name in names(place):
    assert Image.open(io.BytesIO((place / name).read_bytes())).format == "PNG"


def test_a_full_disk_leaves_no_picture(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
  with (
    disk_of(500),
    pytest.raises(UserError, match=f"^{tmp_path / 'a.png'} = File too large: expected a place"),
  ):
    save_grid(noise, tmp_path / "a.png")
  assert names(tmp_path) == []


def test_an_image_comes_back_from_its_png():
  for channels in (1, 3):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(pixels)))).reshape(pixels.shape)
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("values", [(0.4, 0.6), (0.7, 3.0, None), (0.002, 80.0), (5.0,), (float("nan"),)])
def test_a_logarithmic_axis_has_plain_ticks(values):
  figure = new_figure(3, 3)
  panel = figure.subplots()
  panel.plot(range(len(values)), values)
  log_axis(panel, "y", values)
  figure.canvas.draw()
  labels = [label.get_text() for label in panel.yaxis.get_ticklabels(which="both")]
  low, high = panel.get_ylim()
  seen = [text for text in labels if text and low <= float(text) <= high]
  assert len(seen) >= (2 if len(values) > 1 else 0)
