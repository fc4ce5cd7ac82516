"""Edit images with a consistency model, without training (CM Alg. 4).

  python -m cm_jax edit --task=inpaint --model=runs/cd --input=photos/ --mask=mask.png --out=edited/
  python -m cm_jax edit --task=superres --model=weights/cd --input=small.png --factor=4 --out=edited/
  python -m cm_jax edit --task=stroke --model=weights/cd --input=strokes.png --num=4 --out=edited/
  python -m cm_jax edit --task=denoise --model=weights/cd --input=noisy.png --sigma=0.5 --out=edited/
  python -m cm_jax edit --task=interpolate --model=runs/cd --num=8 --out=edited/   # needs no --input

Tasks: inpaint (the mask's white is kept, its black filled in), colorize, superres (block means are kept),
stroke, variation, denoise, interpolate. --out gets the edited images and grid.png: a row an image, the input,
what is known of it, the result.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from etils import epath

from cm_jax.cli.flags import define_seed, define_weights, is_main, load, parse_sigmas, start
from cm_jax.errors import UserError, one_of
from cm_jax.storage import whole

if TYPE_CHECKING:
  from cm_jax.sampling.editing import Edited

TASKS = ("inpaint", "colorize", "superres", "stroke", "variation", "denoise", "interpolate")


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}.", flag_values=values)
  define_weights(values)
  flags.DEFINE_string("input", None, "An image, or a folder of images of one size.", flag_values=values)
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
    "num", 1, "Results per input; of interpolate, the images on the way.", lower_bound=1, flag_values=values
  )
  flags.DEFINE_bool(
    "resize", False, "Crop to a square and resize the input to the model's size.", flag_values=values
  )
  define_seed(values, "Result i depends on (seed, i) only.")
  flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", None, "A new or empty folder for the images and grid.png.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, edit, write."""
  if values.task not in TASKS:
    raise UserError("--task", values.task or "", one_of(TASKS, values.task or ""))
  out = check_folder(values.out)
  start()
  from cm_jax.sampling.editing import edit

  model, inputs = load(values), None
  if values.task != "interpolate":
    inputs = read_inputs(
      values.input, model.image_shape, values.resize, repeat_grey=values.task == "colorize"
    )
  edited = edit(
    model,
    make_operator(values, model.image_shape),
    inputs,
    None if values.sigmas is None else parse_sigmas(values.sigmas),
    values.sigma,
    values.num,
    values.label,
    values.seed,
    values.batch_size,
    num_scales=values.num_scales,
  )
  if is_main():
    write(out, edited)
    print(f"{out}: {len(edited.results)} images, grid.png")


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


def read_inputs(path: str | None, shape: tuple[int, int, int], resize: bool, repeat_grey: bool) -> np.ndarray:
  """Return the images of --input, uint8 [N, *shape].

  Raises:
    UserError: Nothing there, or images of another size or number of channels.
  """
  from cm_jax.data.sources.names import EXTENSIONS

  place = epath.Path(path or "")
  if not path or not place.exists():
    raise UserError("--input", path or "", "an image, or a folder of images")
  files = [place]
  if place.is_dir():
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in EXTENSIONS)
    if not files:
      raise UserError("--input", path, f"a folder that holds images ({', '.join(EXTENSIONS)})")
  return np.stack([read_image(file, shape, resize, repeat_grey) for file in files])


def read_image(path: epath.Path, shape: tuple[int, int, int], resize: bool, repeat_grey: bool) -> np.ndarray:
  """Return one image, uint8 `shape`; `repeat_grey` takes a grey image for a colour model.

  Raises:
    UserError: Not an image, or one of another size or number of channels.
  """
  from cm_jax.data.sources.crops import crop_edm
  from cm_jax.data.sources.decoding import decode
  from cm_jax.data.sources.files import read_file

  image = decode(read_file(str(path)), str(path))
  height, width, channels = shape
  if repeat_grey and channels == 3 and image.shape[2] == 1:
    image = image.repeat(3, axis=2)
  if image.shape[2] != channels:
    raise UserError(str(path), f"{image.shape[2]} channels", f"{channels}, as the model's images")
  if resize and image.shape != shape:
    image = crop_edm(image, height)[..., :channels]  # networks are square
  if image.shape != shape:
    expected = f"{height}x{width}, the model's size (or --resize)"
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

  if not path or not epath.Path(path).exists() or epath.Path(path).is_dir():
    raise UserError("--mask", path or "", "an image, white where the input is kept")
  image = decode(epath.Path(path).read_bytes(), path)
  if image.shape[:2] != size:
    raise UserError("--mask", f"{image.shape[0]}x{image.shape[1]}", f"{size[0]}x{size[1]}, the model's size")
  if not np.isin(image, (0, 255)).all() or not (image == image[..., :1]).all():
    raise UserError("--mask", path, "black (0) and white (255) only")
  return (image[..., 0] == 255).astype(np.float32)


def write(out: epath.Path, edited: "Edited") -> None:
  """Write the results and the grid into a folder that appears whole or not at all."""
  from cm_jax.storage.pictures import encode_png, save_grid

  with whole.folder(out, last="grid.png") as folder:
    for i, image in enumerate(edited.results):
      (folder / f"{i:06d}.png").write_bytes(encode_png(image))
    if edited.inputs is None or edited.known is None:
      save_grid(edited.results, folder / "grid.png", columns=len(edited.results))
    else:
      rows = np.stack([edited.inputs, edited.known, edited.results], axis=1)
      save_grid(rows.reshape(-1, *rows.shape[2:]), folder / "grid.png", columns=3)
