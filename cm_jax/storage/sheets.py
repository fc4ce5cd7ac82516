"""Sheets: rows of images with a title before each row and over each column, as one PNG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import whole
from cm_jax.storage.pictures import GAP, enlargement, to_pil

TEXT = 14  # height of the letters, in pixels
MARGIN = 8  # around a title
LINE = 4  # between two images, and two lines of a title
PAPER, INK = 255, 48
LEAST = 64  # pixels of an image, that its title fits above it


def save_sheet(
  images: np.ndarray, path: epath.PathLike, rows: Sequence[str], columns: Sequence[str] = ()
) -> None:
  """Write rows of images as one PNG, enlarged as `pictures.save_grid` does, at least to `LEAST` pixels.

  Args:
    images: uint8 [R, N, H, W, C], C = 1 or 3.
    path: Where to write.
    rows: R titles, of one or several lines each.
    columns: N titles of one line, cut where they are wider than an image; none for none.

  Raises:
    UserError: Titles that are not as many as rows or columns; the place cannot be written.
  """
  count, across, height, width = images.shape[:4]
  if len(rows) != count:
    raise UserError("rows", len(rows), f"{count} titles, one a row of images")
  if len(columns) not in (0, across):
    raise UserError("columns", len(columns), f"{across} titles, one a column of images, or none")
  scale = max(enlargement(height, width), -(-LEAST // min(height, width)))
  high, wide = height * scale, width * scale
  font = _font()
  left = max((int(font.getlength(line)) for title in rows for line in title.split("\n")), default=0)
  left, top = left + 2 * MARGIN, TEXT + 2 * MARGIN if columns else 0
  sheet = np.full((top + count * (high + LINE), left + across * (wide + LINE), 3), PAPER, np.uint8)
  sheet[top:, left:] = GAP
  for i, row in enumerate(images):
    for j, image in enumerate(row):
      down, right = top + i * (high + LINE), left + j * (wide + LINE)
      sheet[down : down + high, right : right + wide] = image.repeat(scale, 0).repeat(scale, 1)
  picture = to_pil(sheet)
  _write_titles(picture, rows, columns, (left, top), (wide + LINE, high + LINE), font)
  with whole.writing(path) as temporary:
    picture.save(temporary, format="PNG")


def _write_titles(
  picture: Any,
  rows: Sequence[str],
  columns: Sequence[str],
  corner: tuple[int, int],
  tile: tuple[int, int],
  font: Any,
) -> None:
  """Draw the titles: those of rows at the height of their middle, those of columns over theirs."""
  from PIL import ImageDraw

  draw, (left, top), (wide, high) = ImageDraw.Draw(picture), corner, tile
  for i, title in enumerate(rows):
    middle = top + i * high + high // 2
    draw.multiline_text((MARGIN, middle), title, fill=(INK,) * 3, font=font, anchor="lm", spacing=LINE)
  for j, title in enumerate(columns):
    text = fitting(" ".join(title.split()), wide - 2 * LINE, font.getlength)
    draw.text((left + j * wide + wide // 2, top // 2), text, fill=(INK,) * 3, font=font, anchor="mm")


def fitting(text: str, width: float, length: Any) -> str:
  """Return a text, or as much of its beginning as fits with "..." behind it.

  Args:
    text: One line.
    width: What it may take.
    length: What a text takes.

  >>> fitting("automobile", 8, len), fitting("automobile", 10, len)
  ('autom...', 'automobile')
  """
  if length(text) <= width:
    return text
  kept = next((end for end in range(len(text) - 1, 0, -1) if length(f"{text[:end]}...") <= width), 0)
  return f"{text[:kept]}..." if kept else ""


def _font() -> Any:
  from PIL import ImageFont

  return ImageFont.load_default(TEXT)
