"""A PNG of many images, for people."""

import math
import os

import numpy as np


def save_grid(images: np.ndarray, path: str | os.PathLike, columns: int | None = None, scale: int | None = None) -> None:
  """Write images side by side as one PNG, row by row; the file appears whole or not at all.

  Args:
    images: uint8 [N, H, W, C], N >= 1, C = 1 or 3.
    path: Where to write.
    columns: Images a row; by default the smallest square that holds them.
    scale: Pixels a pixel becomes (nearest neighbour); by default enough for images of 48 pixels.
  """
  from PIL import Image

  count, height, width, channels = images.shape
  columns = columns or math.ceil(math.sqrt(count))
  rows = math.ceil(count / columns)
  scale = scale or max(1, math.ceil(48 / max(height, width)))
  gap = 2 if scale > 1 else 0  # enlarged images run into each other without one
  cells = np.zeros((rows * columns, height * scale + gap, width * scale + gap, channels), np.uint8)
  cells[:count, : height * scale, : width * scale] = images.repeat(scale, 1).repeat(scale, 2)
  sheet = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
  temporary = f"{os.fspath(path)}.tmp"
  Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(temporary, format="PNG")
  os.replace(temporary, path)
