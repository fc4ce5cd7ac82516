"""From photographs of any size to squares of one size: as ADM and as EDM do it pixel by pixel, and quickly.

ADM's and EDM's start from every pixel of the file. Pillow's `draft` and `thumbnail` do not: they decode a
JPEG at 1/2, 1/4 or 1/8 of its size, which is faster and gives other pixels; `center` may.
"""

import numpy as np


def crop_adm(pixels: np.ndarray, resolution: int) -> np.ndarray:
  """Halve by averaging while the shorter side is 2 resolutions or more, resize (bicubic), cut out the centre.

  Facts: `center_crop_arr` of openai/guided-diffusion, which ADM and the consistency models of OpenAI prepared
    ImageNet and LSUN with.

  Args:
    pixels: uint8 [H, W, C], C = 1 or 3; grey becomes RGB.
    resolution: Side of the square in pixels, >= 1.

  Returns:
    uint8 [resolution, resolution, 3].

  >>> crop_adm(np.zeros((70, 50, 1), np.uint8), 16).shape
  (16, 16, 3)
  """
  from PIL import Image

  image = Image.fromarray(_rgb(pixels))
  while min(image.size) >= 2 * resolution:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = resolution / min(image.size)
  width, height = (round(side * scale) for side in image.size)
  scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
  top, left = (height - resolution) // 2, (width - resolution) // 2
  return scaled[top : top + resolution, left : left + resolution]


def crop_edm(pixels: np.ndarray, resolution: int) -> np.ndarray:
  """Cut out the largest square in the centre, resize it to the resolution (Lanczos).

  Facts: `--transform=center-crop` of EDM's dataset_tool.py; EDM and EDM2 prepared ImageNet and FFHQ with it
    or its like.

  Args:
    pixels: uint8 [H, W, C], C = 1 or 3; grey becomes RGB.
    resolution: Side of the square in pixels, >= 1.

  Returns:
    uint8 [resolution, resolution, 3].

  >>> crop_edm(np.zeros((70, 50, 1), np.uint8), 16).shape
  (16, 16, 3)
  """
  from PIL import Image

  height, width, _ = pixels.shape
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = Image.fromarray(_rgb(pixels[top : top + side, left : left + side]))
  return np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


def crop_center(pixels: np.ndarray, resolution: int) -> np.ndarray:
  """Take the largest square in the centre and resize it (Lanczos); grey stays grey.

  Args:
    pixels: uint8 [H, W, C], C = 1 or 3.
    resolution: Side of the square in pixels, >= 1.

  Returns:
    uint8 [resolution, resolution, C].

  >>> crop_center(np.zeros((70, 51, 1), np.uint8), 16).shape
  (16, 16, 1)
  """
  from PIL import Image

  height, width, channels = pixels.shape
  side = min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
  box = (left, top, left + side, top + side)
  made = np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box))
  return made[..., None] if channels == 1 else made


CROPS = {"adm": crop_adm, "center": crop_center, "edm": crop_edm}


def _rgb(pixels: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
