"""The edit command, every task end to end with a tiny model; bad input is one line and writes nothing."""

import numpy as np
import pytest
from PIL import Image

from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.data.sources import images, open_source
from cm_jax.training import loop
from tests import tiny

pytestmark = pytest.mark.slow  # every one needs a trained run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run, three digits, a mask that keeps the upper half."""
  path = tmp_path_factory.mktemp("edit")
  loop.train(build(tiny.config(tiny.CT, num_steps=3)), path / "run", progress=False)
  (path / "in").mkdir()
  for i, image in enumerate(images(open_source("digits:test"))[:3]):
    Image.fromarray(image[..., 0]).save(path / "in" / f"{i}.png")
  mask = np.full((8, 8), 255, np.uint8)
  mask[4:] = 0
  Image.fromarray(mask).save(path / "mask.png")
  return path


def edit(folder, out, *arguments: str) -> int:
  return run(["edit", f"--model={folder / 'run'}", f"--out={out}", "--sigmas=80,2", *arguments])


def read(out) -> np.ndarray:
  return np.stack(
    [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png")) if path.name != "grid.png"]
  )


def test_a_folder_of_samples_is_an_input(folder, tmp_path):
  (tmp_path / "in").mkdir()
  (folder / "in").rename(tmp_path / "in" / "00000")  # as `sample --out=folder` lays them out
  try:
    assert edit(folder, tmp_path / "x", "--task=stroke", f"--input={tmp_path / 'in'}") == 0
  finally:
    (tmp_path / "in" / "00000").rename(folder / "in")
  assert {path.name for path in (tmp_path / "x").iterdir()} == {"0.png", "1.png", "2.png", "grid.png"}


def test_inpainting_keeps_the_known_pixels_bit_for_bit(folder, tmp_path):
  assert (
    edit(
      folder,
      tmp_path / "x",
      "--task=inpaint",
      f"--input={folder / 'in'}",
      f"--mask={folder / 'mask.png'}",
      "--num=2",
    )
    == 0
  )
  given = np.stack([np.asarray(Image.open(folder / "in" / f"{i}.png")) for i in range(3)]).repeat(2, axis=0)
  result = read(tmp_path / "x")
  assert result.shape == given.shape
  np.testing.assert_array_equal(result[:, :4], given[:, :4])
  assert (result[:, 4:] != given[:, 4:]).any()
  assert (result[0] != result[1]).any()  # two results for one input
  assert (tmp_path / "x" / "grid.png").is_file()


def test_super_resolution_keeps_the_block_means(folder, tmp_path):
  assert (
    edit(folder, tmp_path / "x", "--task=superres", f"--input={folder / 'in' / '0.png'}", "--factor=4") == 0
  )
  blocks = lambda image: image.astype(float).reshape(2, 4, 2, 4).mean((1, 3))
  given = np.asarray(Image.open(folder / "in" / "0.png"))
  # Values beyond [0, 255] are cut off when they become pixels; what is not cut is kept to half a level.
  result = read(tmp_path / "x")[0]
  inside = (blocks(result > 0) == 1) & (blocks(result < 255) == 1)
  np.testing.assert_allclose(blocks(result)[inside], blocks(given)[inside], atol=0.51)


@pytest.mark.parametrize("task", ["stroke", "variation"])
def test_strokes_and_variations(folder, tmp_path, task):
  for seed in (0, 0, 1):
    out = tmp_path / f"{task}{len(list(tmp_path.iterdir()))}"
    assert edit(folder, out, f"--task={task}", f"--input={folder / 'in'}", f"--seed={seed}") == 0
  first, again, other = (read(path) for path in sorted(tmp_path.iterdir()))
  assert (first == again).all() and (first != other).any()


def test_denoising_and_interpolation(folder, tmp_path):
  assert edit(folder, tmp_path / "x", "--task=denoise", f"--input={folder / 'in'}", "--sigma=0.2") == 0
  assert len(read(tmp_path / "x")) == 3
  assert edit(folder, tmp_path / "y", "--task=interpolate", "--num=5") == 0
  assert len(read(tmp_path / "y")) == 5


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--task=paint"], "--task = paint: expected 'inpaint' (did you mean it?)"),
    (["--task=inpaint", "--input=IN"], "--mask = : expected an image, white where the input is kept"),
    (
      ["--task=inpaint", "--input=IN", "--mask=none.png"],
      "--mask = none.png: expected an image that is there",
    ),
    (["--task=inpaint", "--input=IN", "--mask=LARGE"], "--mask = 9x9: expected 8x8"),
    (["--task=inpaint", "--input=IN", "--mask=GREY"], "black (0) and white (255) only"),
    (["--task=stroke"], "--input = : expected an image"),
    (
      ["--task=superres", "--input=LARGE", "--factor=2"],
      "9x9: expected 8x8, the model's size (or --resize), or 4x4",
    ),
    (["--task=interpolate", "--input=IN"], "expected none: interpolate goes between two samples"),
    (["--task=interpolate", "--between=1"], "--between = 1: expected the numbers of two samples"),
    (["--task=stroke", "--input=none.png"], "--input = none.png"),
    (["--task=stroke", "--input=LARGE"], "9x9: expected 8x8, the model's size (or --resize)"),
    (["--task=stroke", "--input=COLOUR"], "3 channels: expected 1, as the model's images"),
    (["--task=stroke", "--input=TEXT"], "text.png"),
    (["--task=colorize", "--input=IN"], "a model of 3 channels, not 1"),
    (["--task=superres", "--input=IN", "--factor=3"], "--factor = 3: expected a divisor of 8x8"),
    (["--task=denoise", "--input=IN"], "--sigma = : expected the noise level of the input"),
    (["--task=stroke", "--input=IN", "--sigmas=1,2"], "--sigmas = 1,2"),
    (["--task=stroke", "--input=IN", "--label=3"], "--label = 3: expected -1: the model has no classes"),
    (["--task=stroke", "--input=IN", "--model=nowhere"], "--model = nowhere"),
  ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, tmp_path, capsys, arguments, expected):
  Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "large.png")
  Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "grey.png")
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "colour.png")
  (tmp_path / "text.png").write_text("no image")
  places = {
    "IN": folder / "in",
    "LARGE": tmp_path / "large.png",
    "GREY": tmp_path / "grey.png",
    "COLOUR": tmp_path / "colour.png",
  }
  places["TEXT"] = tmp_path / "text.png"
  filled = [argument if "=" not in argument else _fill(argument, places) for argument in arguments]
  before = sorted(tmp_path.iterdir())
  assert run(["edit", f"--model={folder / 'run'}", f"--out={tmp_path / 'out'}", *filled]) == 2
  error = capsys.readouterr().err.strip()
  assert expected in error and "\n" not in error, error
  assert sorted(tmp_path.iterdir()) == before


def _fill(argument: str, places) -> str:
  flag, _, value = argument.partition("=")
  return f"{flag}={places.get(value, value)}"


HEAD = 30  # pixels of the titles over columns


def grid_of(out) -> tuple[int, int]:
  """Return the rows and columns of a grid of 8x8 images, whose rows have short titles."""
  width, height = Image.open(out / "grid.png").size
  return (height - HEAD + 6) // 102, (width + 6) // 102


def images_of(out) -> np.ndarray:
  """Return the pixels [height, width] of a grid of two columns without its titles."""
  return np.asarray(Image.open(out / "grid.png"))[HEAD:, -(2 * 96 + 6) :, 0]


def test_results_have_their_inputs_names_and_rows(folder, tmp_path):
  given = f"--input={folder / 'in'}"
  assert edit(folder, tmp_path / "a", "--task=stroke", given, "--num=4") == 0
  names = sorted(path.name for path in (tmp_path / "a").iterdir())
  assert names == sorted([*(f"{i}_{k}.png" for i in range(3) for k in range(4)), "grid.png"])
  assert grid_of(tmp_path / "a") == (3, 5)  # what is known is all of the input: no column of its own
  mask = f"--mask={folder / 'mask.png'}"
  assert edit(folder, tmp_path / "b", "--task=inpaint", given, mask, "--num=2") == 0
  assert grid_of(tmp_path / "b") == (3, 4)
  sheet = np.asarray(Image.open(tmp_path / "b" / "grid.png"))[..., 0]
  left = sheet.shape[1] - 4 * 102 + 6
  assert all(
    sheet[HEAD + i * 102 : HEAD + i * 102 + 96, :left].min() < 100 for i in range(3)
  )  # inputs' names
  assert all(sheet[:HEAD, left + i * 102 : left + i * 102 + 96].min() < 100 for i in range(4))


def test_a_small_image_is_enlarged(folder, tmp_path):
  small = np.array([[30, 200], [90, 120]], np.uint8)
  Image.fromarray(small).save(tmp_path / "small.png")
  given = f"--input={tmp_path / 'small.png'}"
  assert edit(folder, tmp_path / "x", "--task=superres", given, "--factor=4") == 0
  sheet = images_of(tmp_path / "x")
  np.testing.assert_array_equal(sheet[5:90:48, 5:90:48], small)
  assert sheet.shape == (96, 2 * 96 + 6)


def test_interpolation_between_any_two_samples(folder, tmp_path):
  assert edit(folder, tmp_path / "x", "--task=interpolate", "--between=4,2", "--num=3", "--seed=7") == 0
  ends = read(tmp_path / "x")[[0, 2]]
  out = tmp_path / "drawn"
  assert (
    run(["sample", f"--model={folder / 'run'}", "--sigmas=80", "--num=5", "--seed=7", f"--out={out}"]) == 0
  )
  drawn = np.stack([np.asarray(Image.open(path)) for path in sorted((out / "00000").iterdir())])
  assert np.abs(ends.astype(int) - drawn[[4, 2]]).max() <= 1


def test_resize_crops_and_resizes(folder, tmp_path):
  Image.fromarray(np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "large.png")
  assert edit(folder, tmp_path / "x", "--task=stroke", f"--input={tmp_path / 'large.png'}", "--resize") == 0
  assert read(tmp_path / "x").shape == (1, 8, 8)
  Image.fromarray(np.full((9, 9, 3), (250, 10, 10), np.uint8)).save(tmp_path / "red.png")
  red = f"--input={tmp_path / 'red.png'}"
  assert edit(folder, tmp_path / "y", "--task=superres", red, "--resize", "--factor=8") == 0
  grey = round(250 * 0.2989 + 10 * 0.701)
  assert abs(int(images_of(tmp_path / "y")[40, 40]) - grey) <= 1


def test_a_folder_that_holds_something_is_not_overwritten(folder, tmp_path, capsys):
  (tmp_path / "mine.txt").write_text("keep")
  assert edit(folder, tmp_path, "--task=interpolate") == 2
  assert "a new or empty folder" in capsys.readouterr().err and (tmp_path / "mine.txt").read_text() == "keep"
