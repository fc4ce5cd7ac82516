"""How every picture looks, of images as well as figures: sizes, colours, letters, numbers."""

import math
from collections.abc import Callable
from typing import Any

PAPER, GAP = 255, 128  # grey levels; that between images is neither black nor white, as images may be
INK, FAINT = "#303030", "#9a9a9a"
SIDE = 96  # pixels that the longer side of a small image is enlarged to, at least
LEAST = 64  # of an image that is not enlarged, and of one that has a title
TEXT, MARGIN, LINE = 14, 8, 4  # height of letters, room around a title, between its lines, in pixels
NUMBER = "{x:g}"  # of a tick: plain, not a power of ten
INCHES = 3.2  # height of a panel
FIGURE: dict[Any, Any] = {
  "savefig.dpi": 110,
  "font.size": 10,
  "axes.titlesize": "medium",
  "figure.titlesize": "medium",
  "axes.edgecolor": FAINT,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "legend.fontsize": "small",
  "legend.frameon": False,
  "lines.markersize": 5,
  "image.cmap": "gray",
  "image.interpolation": "nearest",
  # Okabe and Ito's, which people who are blind to red or green tell apart
  "axes.prop_cycle": "cycler('color', ['#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9'])",
  **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
}  # matplotlib's rcParams


def enlargement(height: int, width: int) -> int:
  """Return the pixels that a pixel becomes where people look at an image: 1 from 64 on, else enough for 96.

  >>> enlargement(8, 16), enlargement(48, 48), enlargement(64, 64)
  (6, 2, 1)
  """
  side = max(height, width)
  return 1 if side >= LEAST else math.ceil(SIDE / side)


def gap(height: int, width: int) -> int:
  """Return the pixels between images of a size in pixels: a sixteenth of the longer side, 1 to 8.

  >>> gap(96, 96), gap(64, 32), gap(256, 256), gap(2, 2)
  (6, 4, 8, 1)
  """
  return min(max(max(height, width) // 16, 1), 8)


def font() -> Any:
  """Return Pillow's font for titles."""
  from PIL import ImageFont

  return ImageFont.load_default(TEXT)


def fitting(text: str, width: float, length: Callable[[str], float]) -> str:
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
