"""Sheets: rows of images with a title before each row and over each column, as one PNG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import style, whole
from cm_jax.storage.pictures import to_pil
from cm_jax.storage.style import LEAST, LINE, MARGIN


def save_sheet(
  images: np.ndarray, path: epath.PathLike, rows: Sequence[str], columns: Sequence[str] = ()
) -> None:
  """Write rows of images as one PNG, enlarged as `pictures.save_grid` does, at least to 64 pixels.

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
  scale = max(style.enlargement(height, width), -(-LEAST // min(height, width)))
  high, wide = height * scale, width * scale
  gap, font = style.gap(high, wide), style.font()
  left = max((int(font.getlength(line)) for title in rows for line in title.split("\n")), default=0)
  left, top = left + 2 * MARGIN, style.TEXT + 2 * MARGIN if columns else 0
  size = (top + count * (high + gap) - gap, left + across * (wide + gap) - gap, 3)
  sheet = np.full(size, style.PAPER, np.uint8)
  sheet[top:, left:] = style.GAP
  for i, row in enumerate(images):
    for j, image in enumerate(row):
      down, right = top + i * (high + gap), left + j * (wide + gap)
      sheet[down : down + high, right : right + wide] = image.repeat(scale, 0).repeat(scale, 1)
  picture = to_pil(sheet)
  _write_titles(picture, rows, columns, (left, top), (wide, high), gap)
  with whole.writing(path) as temporary:
    picture.save(temporary, format="PNG")


def _write_titles(
  picture: Any,
  rows: Sequence[str],
  columns: Sequence[str],
  corner: tuple[int, int],
  size: tuple[int, int],
  gap: int,
) -> None:
  """Draw the titles: those of rows at the height of their middle, those of columns over theirs."""
  from PIL import ImageDraw

  draw, font, (left, top), (wide, high) = ImageDraw.Draw(picture), style.font(), corner, size
  for i, title in enumerate(rows):
    middle = top + i * (high + gap) + high // 2
    draw.multiline_text((MARGIN, middle), title, fill=style.INK, font=font, anchor="lm", spacing=LINE)
  for j, title in enumerate(columns):
    text = style.fitting(" ".join(title.split()), wide - LINE, font.getlength)
    draw.text((left + j * (wide + gap) + wide // 2, top // 2), text, fill=style.INK, font=font, anchor="mm")
