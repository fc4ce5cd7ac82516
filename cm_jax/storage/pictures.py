"""Pictures for people: one image as PNG, a grid of many, a figure; whole or not there."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import DAMAGE, UserError
from cm_jax.storage import whole

GAP = 128  # between the images of a grid: neither black nor white, which images may be themselves
MAX_PIXELS = 1 << 26  # of a grid that is read
TILE = "cm_jax tile"  # a note in a grid's PNG: height and width of an image with its gap


def encode_png(pixels: np.ndarray) -> bytes:
  """Encode uint8 [H, W, C], C = 1 or 3, as PNG: lightly compressed, as it is read more often than written.

  >>> encode_png(np.zeros((2, 2, 3), np.uint8))[:4]
  b'\\x89PNG'
  """
  content = io.BytesIO()
  to_pil(pixels).save(content, format="PNG", compress_level=1)
  return content.getvalue()


def to_pil(images: np.ndarray) -> Any:
  """Return uint8 [H,W,C] as a Pillow image, [N,H,W,C] as a list of them; C = 1 or 3.

  Raises:
    UserError: Not such an array.

  >>> to_pil(np.zeros((2, 8, 16, 3), np.uint8))[0].size
  (16, 8)
  """
  from PIL import Image

  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] not in (1, 3):
    given = f"{images.dtype} {list(images.shape)}"
    raise UserError(
      "images", given, "uint8 [N, H, W, C] or [H, W, C] with 1 or 3 channels, as sample returns"
    )
  if images.ndim == 4:
    return [to_pil(image) for image in images]
  return Image.fromarray(images[..., 0] if images.shape[-1] == 1 else images)


def png_name(index: int) -> str:
  """Return what EDM's data sets call an image by its number: a thousand a folder.

  >>> png_name(12345)
  '00012/img00012345.png'
  """
  return f"{index // 1000:05d}/img{index:08d}.png"


def save_grid(
  images: np.ndarray, path: epath.PathLike, columns: int | None = None, scale: int | None = None
) -> None:
  """Write images side by side as one PNG, row by row.

  Args:
    images: uint8 [N, H, W, C], N >= 1, C = 1 or 3.
    path: Where to write.
    columns: Images a row; by default the smallest square that holds them.
    scale: Pixels a pixel becomes (nearest neighbour); by default enough for 96 pixels an image, 1 from 48.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  count, height, width, channels = images.shape
  rows, columns, scale, gap = _laid_out(count, height, width, columns, scale)
  size = (height * scale + gap, width * scale + gap)
  cells = np.full((rows * columns, *size, channels), GAP, np.uint8)
  cells[:count, : height * scale, : width * scale] = images.repeat(scale, 1).repeat(scale, 2)
  by_rows = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
  sheet = by_rows.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
  with whole.writing(path) as temporary:
    to_pil(sheet).save(temporary, format="PNG", pnginfo=_note(f"{size[0]} {size[1]}"))


def _note(tile: str) -> Any:
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  info.add_text(TILE, tile)
  return info


def corner_of_grid(path: epath.PathLike, side: int) -> np.ndarray:
  """Return the first `side` x `side` images of a grid that `save_grid` wrote (all of it, if an older one).

  Raises:
    UserError: It is no PNG, damaged, or of more than `MAX_PIXELS`.
  """
  from PIL import Image

  try:
    with Image.open(io.BytesIO(whole.read(path)), formats=["PNG"]) as image:
      if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels")
      tile = image.info.get(TILE)
      sheet = np.asarray(image)
    height, width = map(int, tile.split()) if tile is not None else (0, 0)
  except (OSError, SyntaxError, *DAMAGE, Image.DecompressionBombError) as error:
    raise UserError(str(path), f"unreadable: {error}", "a picture that evaluate drew") from error
  if tile is None:
    return sheet
  return sheet[: side * height, : side * width]


def most_bytes(count: int, shape: tuple[int, ...]) -> int:
  """Return the bytes that a grid's PNG may come to: those of its pixels, as those of noise cannot be pressed.

  >>> most_bytes(4, (64, 32, 3))
  24576
  """
  height, width, channels = shape
  rows, columns, scale, gap = _laid_out(count, height, width)
  return rows * (height * scale + gap) * columns * (width * scale + gap) * channels


def enlargement(height: int, width: int) -> int:
  """Return the pixels that a pixel becomes where people look at an image: 1 from 48 on, else enough for 96.

  >>> enlargement(8, 16), enlargement(64, 64)
  (6, 1)
  """
  side = max(height, width)
  return 1 if side >= 48 else math.ceil(96 / side)


def _laid_out(
  count: int, height: int, width: int, columns: int | None = None, scale: int | None = None
) -> tuple[int, int, int, int]:
  """Return the rows and columns of a grid, the pixels a pixel becomes, and those between two images."""
  columns = columns or math.ceil(math.sqrt(count))
  scale = scale or enlargement(height, width)
  # enlarged images run into each other without a gap
  return math.ceil(count / columns), columns, scale, 2 if scale > 1 else 0


def new_figure(width: float, height: float) -> Any:
  """Return a matplotlib figure that needs no display, laid out without overlaps; sizes in inches."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def log_axis(panel: Any, which: str, values: Sequence[float | None]) -> None:
  """Make an axis of a panel logarithmic, with ticks that are plain numbers, also where it spans no decade.

  Args:
    panel: Matplotlib's axes.
    which: "x" or "y".
    values: What is drawn along it; what is not positive and finite is not drawn.
  """
  from matplotlib import ticker

  shown = [value for value in values if value is not None and math.isfinite(value) and value > 0]
  panel.set(**{f"{which}scale": "log"})
  axis = {"x": panel.xaxis, "y": panel.yaxis}[which]
  span = max(shown) / min(shown) if shown else 1.0
  steps = (1.0, 2.0, 5.0) if span < 300 else (1.0,)
  few = span < 4  # less than three of those ticks would be seen
  axis.set_major_locator(ticker.MaxNLocator(4) if few else ticker.LogLocator(subs=steps))
  axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(ticker.NullFormatter())


def save_figure(figure: Any, path: epath.PathLike, dpi: int = 120) -> None:
  """Write a figure as PNG.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  with whole.writing(path) as temporary:
    figure.savefig(temporary, format="png", dpi=dpi)
