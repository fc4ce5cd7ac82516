"""Pictures for people: one image as PNG, a grid of many, a figure; whole or not there."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cm_jax.errors import DAMAGE, UserError
from cm_jax.storage import style, whole

MAX_PIXELS = 1 << 26  # of a grid that is read
TILE = "cm_jax tile"  # a note in a grid's PNG: how it is laid out, for who reads it back


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
  images: np.ndarray,
  path: epath.PathLike,
  columns: int | None = None,
  scale: int | None = None,
  titles: Sequence[str] = (),
) -> None:
  """Write images side by side as one PNG, row by row, with a grey gap between them.

  Args:
    images: uint8 [N, H, W, C], N >= 1, C = 1 or 3.
    path: Where to write.
    columns: Images a row; by default the smallest square that holds them, or the next wider grid whose
      columns have one title each, if it is at most twice as wide.
    scale: Pixels a pixel becomes (nearest neighbour); by default enough for 96 pixels an image, 1 from 64.
    titles: N of one line, such as classes, cut where they are wider than an image; none for none. One that
      all images have stands over the grid once, those that a column has in common over the column, others
      over each image.

  Raises:
    UserError: Titles that are not as many as images; the place cannot be written, or the disk is full.
  """
  count, height, width, channels = images.shape
  if len(titles) not in (0, count):
    raise UserError("titles", len(titles), f"{count}, one an image, or none")
  laid = _laid_out((count, height, width), columns, scale, titles)
  cells = np.full((laid.rows * laid.columns, *laid.tile, channels), style.GAP, np.uint8)
  high, wide = height * laid.scale, width * laid.scale
  cells[:count, : laid.caption, :wide] = style.PAPER
  cells[:count, laid.caption : laid.caption + high, :wide] = images.repeat(laid.scale, 1).repeat(
    laid.scale, 2
  )
  by_rows = cells.reshape(laid.rows, laid.columns, *cells.shape[1:]).swapaxes(1, 2)
  sheet = by_rows.reshape(laid.rows * cells.shape[1], laid.columns * cells.shape[2], channels)
  head = np.full((laid.head, *sheet.shape[1:]), style.PAPER, np.uint8)
  picture = to_pil(np.concatenate([head, sheet])[: -laid.gap, : -laid.gap])
  _write_titles(picture, titles, laid)
  note = " ".join(map(str, (*laid.tile, laid.gap, laid.head)))
  with whole.writing(path) as temporary:
    picture.save(temporary, format="PNG", pnginfo=_note(note))


def _note(tile: str) -> Any:
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  info.add_text(TILE, tile)
  return info


def corner_of_grid(path: epath.PathLike, side: int) -> np.ndarray:
  """Return the first `side` x `side` images of a grid that `save_grid` wrote, with their titles (all of the
  grid, if an older one).

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
    # before there were titles, a grid said its tile only, and ended with a gap
    if tile is None:
      return sheet
    height, width, gap, head = (*map(int, tile.split()), 0, 0)[:4]
    if min(height, width) <= gap or min(gap, head) < 0:
      raise ValueError(f"tiles of {tile}")
  except (OSError, SyntaxError, *DAMAGE, Image.DecompressionBombError) as error:
    raise UserError(str(path), f"unreadable: {error}", "a picture that evaluate drew") from error
  return sheet[: head + side * height - gap, : side * width - gap]


def most_bytes(count: int, shape: tuple[int, ...], titles: Sequence[str] = ()) -> int:
  """Return the bytes that a grid's PNG may come to: those of its pixels, as those of noise cannot be pressed.

  >>> most_bytes(4, (64, 32, 3))
  29376
  """
  height, width, channels = shape
  laid = _laid_out((count, height, width), titles=titles)
  return (laid.head + laid.rows * laid.tile[0]) * laid.columns * laid.tile[1] * channels


class _Grid(NamedTuple):
  """How a grid is laid out: rows and columns, then pixels.

  Attributes:
    scale: That a pixel becomes.
    tile: Height and width of an image with its caption above and the gap below and at the right.
    gap: Between images.
    head: Over the grid, for the titles of columns.
    caption: Over each image, for its own title.
  """

  rows: int
  columns: int
  scale: int
  tile: tuple[int, int]
  gap: int
  head: int
  caption: int


def _laid_out(
  size: tuple[int, int, int], columns: int | None = None, scale: int | None = None, titles: Sequence[str] = ()
) -> _Grid:
  """Lay out so many images of a height and width."""
  count, height, width = size
  square = math.ceil(math.sqrt(count))
  if columns is None:
    period = next((n for n in range(1, 2 * square + 1) if titles[:-n] == titles[n:]), count)
    wider = math.ceil(square / period) * period
    columns = wider if wider <= 2 * square else square
  scale = scale or style.enlargement(height, width)
  high, wide = height * scale, width * scale
  gap, band = style.gap(high, wide), style.TEXT + style.MARGIN if titles else 0
  has_common = all(len(set(titles[column::columns])) == 1 for column in range(min(columns, count)))
  head, caption = (band, 0) if has_common else (0, band)
  tile = (caption + high + gap, wide + gap)
  return _Grid(math.ceil(count / columns), columns, scale, tile, gap, head, caption)


def _write_titles(picture: Any, titles: Sequence[str], laid: _Grid) -> None:
  """Draw the titles in the middle of their bands."""
  from PIL import ImageDraw

  draw, font, (high, wide) = ImageDraw.Draw(picture), style.font(), laid.tile
  shown = titles[: laid.columns] if laid.head else titles
  if laid.head and len(set(titles)) == 1:
    shown, wide = titles[:1], picture.width + laid.gap
  for i, title in enumerate(shown):
    row, column = divmod(i, laid.columns)
    text = style.fitting(" ".join(title.split()), wide - laid.gap, font.getlength)
    at = (column * wide + (wide - laid.gap) // 2, row * high + (laid.head or laid.caption) // 2)
    draw.text(at, text, fill=style.INK, font=font, anchor="mm")


@contextlib.contextmanager
def figure(path: epath.PathLike, width: float, height: float) -> Iterator[Any]:
  """Give a matplotlib figure to draw into, in cm_jax's style and without a display, and write it as PNG.

  Args:
    path: Where to write.
    width, height: Inches.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with matplotlib.rc_context(style.FIGURE):
    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    yield drawn
    with whole.writing(path) as temporary:
      drawn.savefig(temporary, format="png")


def log_axis(panel: Any, which: str, values: Sequence[float | None]) -> None:
  """Make an axis of a panel logarithmic, with ticks that are plain numbers, also where it spans no decade.

  It stays linear where a value is negative, as losses that are weighted by a learnt uncertainty come to be,
  or all are zero.

  Args:
    panel: Matplotlib's axes.
    which: "x" or "y".
    values: What is drawn along it; what is not finite is not drawn, nor a zero if the axis is logarithmic.
  """
  from matplotlib import ticker

  finite = [value for value in values if value is not None and math.isfinite(value)]
  shown = [value for value in finite if value > 0]
  axis = {"x": panel.xaxis, "y": panel.yaxis}[which]
  if finite and (min(finite) < 0 or not shown):
    axis.set_major_formatter(ticker.StrMethodFormatter(style.NUMBER))
    return
  panel.set(**{f"{which}scale": "log"})
  span = max(shown) / min(shown) if shown else 1.0
  steps = (1.0, 2.0, 5.0) if span < 300 else (1.0,)
  few = span < 8  # less than three of those ticks would be seen
  axis.set_major_locator(ticker.MaxNLocator(4) if few else ticker.LogLocator(subs=steps))
  axis.set_major_formatter(ticker.StrMethodFormatter(style.NUMBER))
  if few:
    axis.set_minor_locator(ticker.NullLocator())
  axis.set_minor_formatter(ticker.NullFormatter())
