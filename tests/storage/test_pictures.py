"""A grid holds every image where a reader expects it."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cm_jax.errors import UserError
from cm_jax.storage.pictures import corner_of_grid, encode_png, figure, log_axis, most_bytes, save_grid
from tests.storage.places import disk_of, names


def opened(path) -> np.ndarray:
  return np.asarray(Image.open(path))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged(tmp_path, channels):
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, channels), dtype=np.uint8)
  save_grid(images, tmp_path / "a.png")
  sheet = opened(tmp_path / "a.png").reshape(2 * 96 + 6, 3 * 96 + 2 * 6, channels)
  np.testing.assert_array_equal(sheet[102:, 102:198][::12, ::12], images[4])
  np.testing.assert_array_equal(corner_of_grid(tmp_path / "a.png", 1).reshape(96, 96, -1), sheet[:96, :96])
  assert (sheet[102:, 204:] == 128).all() and (sheet[:, 96:102] == 128).all() and (sheet[96:102] == 128).all()
  assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_columns_and_scale(tmp_path):
  images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
  save_grid(images, tmp_path / "a.png", columns=2, scale=1)
  sheet = opened(tmp_path / "a.png")
  assert sheet.shape == (8, 5)
  np.testing.assert_array_equal(sheet[3:5, 3:], images[3, :, :, 0])


BAND = 22  # pixels of a line of titles
# 7 images: titles, then the rows and columns of the grid, and where the titles stand
TITLED = {
  "one": (["fox"] * 7, (3, 3), "once"),
  "classes in turn": (["fox", "owl", "bee", "elk"] * 2, (2, 4), "over columns"),
  "too many for columns": (["fox", "owl", "bee", "elk", "ant", "cow", "hen"], (3, 3), "over images"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", TITLED)
def test_titles_stand_over_what_has_them_in_common(tmp_path, case, channels):
  titles, (rows, columns), where = TITLED[case]
  images = np.random.default_rng(1).integers(0, 256, (7, 16, 8, channels), dtype=np.uint8)
  save_grid(images, tmp_path / "a.png", titles=titles[:7])
  sheet = opened(tmp_path / "a.png").reshape(*opened(tmp_path / "a.png").shape[:2], channels)
  head, caption = (0, BAND) if where == "over images" else (BAND, 0)
  high, wide = caption + 96 + 6, 48 + 6
  assert sheet.shape[:2] == (head + rows * high - 6, columns * wide - 6)
  for i, image in enumerate(images):
    down, right = head + i // columns * high + caption, i % columns * wide
    np.testing.assert_array_equal(sheet[down : down + 96, right : right + 48][::6, ::6], image)
  if where == "once":
    band = sheet[:BAND]
    assert band[:, wide : 2 * wide].min() < 100 < band[:, :wide].min()
  else:
    bands = [sheet[:BAND, i * wide : i * wide + 48] for i in range(columns)]
    assert all(band.min() < 100 and band.max() == 255 for band in bands)
    assert (bands[0] != bands[1]).any()  # other letters
  # what is read back is whole images with their titles
  corner = corner_of_grid(tmp_path / "a.png", 2).reshape(head + 2 * high - 6, 2 * wide - 6, channels)
  np.testing.assert_array_equal(corner, sheet[: len(corner), : 2 * wide - 6])
  assert (tmp_path / "a.png").stat().st_size < most_bytes(7, (16, 8, channels), titles[:7])


def test_a_grid_of_noise_stays_below_what_was_reckoned_with(tmp_path):
  images = np.random.default_rng(2).integers(0, 256, (9, 70, 80, 3), dtype=np.uint8)
  save_grid(images, tmp_path / "a.png", titles=["fox", "owl", "bee"] * 3)
  size = (tmp_path / "a.png").stat().st_size
  assert 0.8 < size / most_bytes(9, (70, 80, 3), ["fox", "owl", "bee"] * 3) < 1


def test_titles_are_one_an_image(tmp_path):
  with pytest.raises(UserError, match="^titles = 2: expected 3, one an image, or none"):
    save_grid(np.zeros((3, 8, 8, 1), np.uint8), tmp_path / "a.png", titles=["fox", "owl"])
  assert names(tmp_path) == []


def noted(path, note: str, sheet: np.ndarray) -> None:
  info = PngImagePlugin.PngInfo()
  info.add_text("cm_jax tile", note)
  Image.fromarray(sheet).save(path, pnginfo=info)


def test_a_grid_of_before_there_were_titles_is_read(tmp_path):
  sheet = np.random.default_rng(3).integers(0, 256, (30, 60), dtype=np.uint8)
  noted(tmp_path / "a.png", "10 12", sheet)
  np.testing.assert_array_equal(corner_of_grid(tmp_path / "a.png", 2), sheet[:20, :24])


@pytest.mark.parametrize("note", ["7", "0 8", "-9 9", "9 9 9 0", "9 9 -1 0", "9 9 1 -4", "a b"])
def test_a_note_that_is_no_layout_is_refused(tmp_path, note):
  noted(tmp_path / "a.png", note, np.zeros((20, 20), np.uint8))
  with pytest.raises(UserError, match="a.png = unreadable: .*: expected a picture that evaluate drew"):
    corner_of_grid(tmp_path / "a.png", 2)


def test_pictures_are_whole_anywhere(place):
  save_grid(np.zeros((3, 4, 4, 3), np.uint8), place / "deep" / "grid.png")
  with figure(place / "deep" / "figure.png", 2, 2) as drawn:
    drawn.subplots().plot([1, 2], [1, 4])
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


@pytest.mark.parametrize(
  "values", [(0.4, 0.6), (0.2, 0.88), (0.7, 3.0, None), (0.002, 80.0), (5.0,), (float("nan"),)]
)
def test_a_logarithmic_axis_has_plain_ticks(values, tmp_path):
  with figure(tmp_path / "a.png", 3, 3) as drawn:
    panel = drawn.subplots()
    panel.plot(range(len(values)), values)
    log_axis(panel, "y", values)
  labels = [label.get_text() for label in panel.yaxis.get_ticklabels(which="both")]
  low, high = panel.get_ylim()
  seen = [text for text in labels if text and low <= float(text) <= high]
  assert len(seen) >= (3 if len(values) > 1 else 0)


@pytest.mark.parametrize(
  ("values", "scale"), [((2.0, -3.5), "linear"), ((0.0,), "linear"), ((4.0, 0.0, 1.0), "log")]
)
def test_what_is_negative_is_seen(values, scale, tmp_path):
  """Of sCM's loss a logarithmic axis showed nothing."""
  with figure(tmp_path / "a.png", 3, 3) as drawn:
    panel = drawn.subplots()
    panel.plot(range(len(values)), values)
    log_axis(panel, "y", values)
  low, high = panel.get_ylim()
  assert panel.get_yscale() == scale
  assert low <= min(value for value in values if scale == "linear" or value > 0) <= max(values) <= high
  assert any(low < tick < high for tick in panel.yaxis.get_major_locator()())


def test_the_style_is_that_of_the_picture_only(tmp_path):
  before = matplotlib.rcParams["legend.frameon"], matplotlib.rcParams["text.color"]
  with figure(tmp_path / "a.png", 3, 2) as drawn:
    panel = drawn.subplots()
    panel.plot([1, 2], label="x")
    assert panel.lines[0].get_color() == "#0072b2" and not panel.legend().get_frame_on()
  assert Image.open(tmp_path / "a.png").size == (330, 220)
  assert (matplotlib.rcParams["legend.frameon"], matplotlib.rcParams["text.color"]) == before


def test_a_figure_that_fails_half_way_is_not_there(tmp_path):
  with pytest.raises(ZeroDivisionError), figure(tmp_path / "a.png", 3, 2) as drawn:
    drawn.subplots().plot([1, 1 / 0])
  assert names(tmp_path) == []
