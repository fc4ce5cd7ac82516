"""Edit images with a consistency model, without training (CM Alg. 4).

  python -m cm_jax edit --task=inpaint --model=runs/cd --input=photos/ --mask=mask.png --out=edited/
  python -m cm_jax edit --task=superres --model=weights/cd --input=small.png --factor=4 --out=edited/
  python -m cm_jax edit --task=stroke --model=weights/cd --input=strokes.png --num=4 --out=edited/
  python -m cm_jax edit --task=denoise --model=weights/cd --input=noisy.png --sigma=0.5 --out=edited/
  python -m cm_jax edit --task=interpolate --model=runs/cd --num=8 --between=3,17 --out=edited/

Tasks: inpaint (the mask's white is kept, its black filled in: the opposite of diffusers), colorize, superres
(block means are kept; the input has the model's size, or is smaller by --factor), stroke, variation, denoise,
interpolate (between two samples of --seed). --out gets the edited images, under their inputs' names, and
grid.png: a row an input, beside it what is known of it, if that is less, and the results.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from etils import epath

from cm_jax.cli.flags import counted, define_seed, define_weights, is_main, load, parse_sigmas, start
from cm_jax.errors import UserError, one_of
from cm_jax.notices import notice
from cm_jax.storage import whole

if TYPE_CHECKING:
  from cm_jax.sampling.editing import Edited

TASKS = ("inpaint", "colorize", "superres", "stroke", "variation", "denoise", "interpolate")


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}.", flag_values=values)
  define_weights(values)
  flags.DEFINE_string(
    "input", None, "An image, or a folder of them, of one size, such as sample writes.", flag_values=values
  )
  flags.DEFINE_string(
    "mask",
    None,
    "inpaint: an image of the same size, white where the input is kept, black elsewhere.",
    flag_values=values,
  )
  flags.DEFINE_integer("factor", 4, "superres: side of the blocks.", flag_values=values)
  flags.DEFINE_float(
    "sigma", None, "denoise: the level of the noise in the input, in [-1, 1] units.", flag_values=values
  )
  flags.DEFINE_string(
    "sigmas",
    None,
    "Descending noise levels, such as 80,10,2; by default those of the task.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_scales",
    18,
    "Without --sigmas: points of the Karras grid (40 for LSUN-size models).",
    lower_bound=2,
    flag_values=values,
  )
  flags.DEFINE_string("label", "-1", "Class of the images, number or name; -1: none.", flag_values=values)
  flags.DEFINE_integer(
    "num",
    None,
    "Results per input, 1 by default; of interpolate, the images on the way, 8.",
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_bool(
    "resize",
    False,
    "Crop to a square and resize the input to the model's size; to grey or colour, as its images are.",
    flag_values=values,
  )
  flags.DEFINE_list(
    "between", ["0", "1"], "interpolate: the numbers of two samples of the seed.", flag_values=values
  )
  define_seed(values, "Result i depends on (seed, i) only.")
  flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", None, "A new or empty folder for the images and grid.png.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, edit, write."""
  if values.task not in TASKS:
    raise UserError("--task", values.task or "", one_of(TASKS, values.task or ""))
  out, between = check_folder(values.out), check_between(values)
  start()
  from cm_jax.sampling.doubts import doubts
  from cm_jax.sampling.editing import edit

  model, inputs, files = load(values), None, []
  if values.task != "interpolate":
    files = input_files(values.input)
    inputs = np.stack([read_image(file, model.image_shape, values) for file in files])
  notice(*doubts(model, edits=True, label=values.label))
  num = values.num or (8 if inputs is None else 1)
  edited = edit(
    model,
    make_operator(values, model.image_shape),
    inputs,
    None if values.sigmas is None else parse_sigmas(values.sigmas),
    values.sigma,
    num,
    values.label,
    values.seed,
    values.batch_size,
    num_scales=values.num_scales,
    between=between,
  )
  if is_main():
    write(out, edited, result_names([file.name for file in files], num), num)
    print(f"{values.out}: {counted(len(edited.results), 'image')}, grid.png")


def check_folder(out: str | None) -> epath.Path:
  """Return --out as a path.

  Raises:
    UserError: It is not given, or holds something.
  """
  if not out:
    raise UserError("--out", "", "a new or empty folder")
  path = whole.absolute(out)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError("--out", out, "a new or empty folder")
  whole.check_writable("--out", path)
  return path


def check_between(values: flags.FlagValues) -> tuple[int, int]:
  """Return --between, the numbers of two samples.

  Raises:
    UserError: Not two numbers; an --input that would not be looked at.
  """
  if values.task == "interpolate" and values.input is not None:
    raise UserError(
      "--input", values.input, "none: interpolate goes between two samples of --seed (--between=0,1)"
    )
  given = ",".join(values.between)
  if not re.fullmatch(r"\d{1,9},\d{1,9}", given):
    raise UserError("--between", given, "the numbers of two samples of the seed, such as 0,1")
  first, second = map(int, values.between)
  return first, second


def input_files(path: str | None) -> list[epath.Path]:
  """Return the files of --input, in the order of their names.

  Raises:
    UserError: Nothing there.
  """
  from cm_jax.data.sources.names import EXTENSIONS

  place = epath.Path(path or "")
  if not path or not place.exists():
    raise UserError("--input", path or "", "an image, or a folder of images")
  files = [place]
  if place.is_dir():
    images = lambda found: sorted(file for file in found if file.suffix.lower() in EXTENSIONS)
    files = images(place.iterdir()) or images(place.glob("*/*"))  # as `sample` writes a folder: by thousands
    if not files:
      raise UserError("--input", path, f"a folder that holds images ({', '.join(EXTENSIONS)})")
  return files


def result_names(inputs: Sequence[str], num: int) -> list[str]:
  """Return the names of the results' files: those of their inputs.

  >>> result_names(["b.jpg", "c.png"], 1), result_names(["b.jpg"], 2), result_names([], 2)
  (['b.png', 'c.png'], ['b_0.png', 'b_1.png'], ['000000.png', '000001.png'])
  >>> result_names(["b.jpg", "b.png", "grid.png"], 1)  # each file its own, and none that of the grid
  ['b.jpg.png', 'b.png.png', 'grid.png.png']
  """
  if not inputs:
    return [f"{i:06d}.png" for i in range(num)]
  stems = [name.rpartition(".")[0] for name in inputs]
  unique = len(set(stems)) == len(stems) and "grid" not in stems
  bases = stems if unique else inputs
  return [f"{base}.png" if num == 1 else f"{base}_{k}.png" for base in bases for k in range(num)]


def read_image(path: epath.Path, shape: tuple[int, int, int], values: flags.FlagValues) -> np.ndarray:
  """Return one image, uint8 `shape`: a grey one for a colour model to colourise, a small one to enlarge.

  Raises:
    UserError: Not an image, or one of another size or number of channels.
  """
  from cm_jax.data.sources.crops import crop_edm
  from cm_jax.data.sources.decoding import decode
  from cm_jax.data.sources.files import read_file
  from cm_jax.sampling.operators import LUMINANCE

  image = decode(read_file(str(path)), str(path))
  height, width, channels = shape
  if (values.task == "colorize" or values.resize) and channels == 3 and image.shape[2] == 1:
    image = image.repeat(3, axis=2)
  if values.resize and channels == 1 and image.shape[2] == 3:
    image = np.rint(image @ np.array(LUMINANCE) / sum(LUMINANCE)).astype(np.uint8)[..., None]
  if image.shape[2] != channels:
    raise UserError(
      str(path), f"{image.shape[2]} channels", f"{channels}, as the model's images (or --resize)"
    )
  factor = values.factor
  if values.task == "superres" and factor > 1 and image.shape[:2] == (height // factor, width // factor):
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)  # its pixels are the means that are known
  if values.resize and image.shape != shape:
    image = crop_edm(image, height)[..., :channels]  # networks are square
  if image.shape != shape:
    expected = f"{height}x{width}, the model's size (or --resize)"
    if values.task == "superres":
      expected += f", or {height // factor}x{width // factor}, which --factor={factor} enlarges to it"
    raise UserError(str(path), f"{image.shape[0]}x{image.shape[1]}", expected)
  return image


def make_operator(values: flags.FlagValues, shape: tuple[int, int, int]) -> Any:
  """Return what the task measures, or the task where it measures nothing.

  Raises:
    UserError: A mask that does not fit, a factor that is none.
  """
  from cm_jax.sampling.operators import Colorize, Mask, SuperResolution

  if values.task == "inpaint":
    return Mask(read_mask(values.mask, shape[:2]))
  if values.task == "superres":
    return SuperResolution(values.factor)
  return Colorize() if values.task == "colorize" else values.task


def read_mask(path: str | None, size: tuple[int, ...]) -> np.ndarray:
  """Return the mask, [H,W] of 0 and 1.

  Raises:
    UserError: None given, of another size, or with other values than black and white.
  """
  from cm_jax.data.sources.decoding import decode
  from cm_jax.data.sources.files import read_file

  if not path or not epath.Path(path).exists() or epath.Path(path).is_dir():
    there = "an image that is there" if path else "an image"
    raise UserError("--mask", path or "", f"{there}, white where the input is kept")
  image = decode(read_file(path), path)
  if image.shape[:2] != size:
    raise UserError("--mask", f"{image.shape[0]}x{image.shape[1]}", f"{size[0]}x{size[1]}, the model's size")
  if not np.isin(image, (0, 255)).all() or not (image == image[..., :1]).all():
    raise UserError("--mask", path, "black (0) and white (255) only")
  return (image[..., 0] == 255).astype(np.float32)


def write(out: epath.Path, edited: "Edited", names: Sequence[str], num: int) -> None:
  """Write the results and the grid into a folder that appears whole or not at all."""
  from cm_jax.storage import style
  from cm_jax.storage.pictures import encode_png, save_grid
  from cm_jax.storage.sheets import save_sheet

  with whole.folder(out, last="grid.png") as folder:
    for name, image in zip(names, edited.results, strict=True):
      (folder / name).write_bytes(encode_png(image))
    if edited.inputs is None or edited.known is None:
      save_grid(edited.results, folder / "grid.png", columns=len(edited.results))
      return
    # A row an input: the input, what is known of it where that is less, its results.
    per_input = lambda images: images.reshape(-1, num, *images.shape[1:])
    parts = [("input", per_input(edited.inputs)[:, 0])]
    if (edited.known != edited.inputs).any():
      parts.append(("known", per_input(edited.known)[:, 0]))
    results = per_input(edited.results)
    parts += [(f"result {k + 1}" if num > 1 else "result", results[:, k]) for k in range(num)]
    heads, columns = zip(*parts, strict=True)
    stems = [name.rpartition(".")[0].removesuffix("_0" if num > 1 else "") for name in names[::num]]
    titles = [style.fitting(stem, 24, len) for stem in stems]
    save_sheet(np.stack(columns, axis=1), folder / "grid.png", titles, heads)
