"""How images come to the size of a network: a distance behind one resize is another number behind another.

A new one is a function and a line in `RESIZES`: uint8 [N,H,W,C], C = 1 or 3, to [N, side, side, 3] of pixels
in [0, 255], uint8 where it rounds, else float32.
"""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from cm_jax.data.sources.threads import cores
from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.features.base import Extractor
from cm_jax.networks import inception


def tf1_bilinear(images: np.ndarray, side: int) -> np.ndarray:
  """Return images by TensorFlow 1's bilinear resize, `networks.inception.resized`: s = i W / side."""
  return _coloured(np.asarray(inception.resized(jnp.asarray(images), side)))


def torch_bilinear(images: np.ndarray, side: int) -> np.ndarray:
  """Return images by torch's bilinear `interpolate`, align_corners=False, as old pytorch-fid does.

  y[i] = (1 - l) x[floor s] + l x[min(floor s + 1, W - 1)],  s = max((i + 1/2) W / side - 1/2, 0)

  >>> torch_bilinear(np.uint8([0, 3]).reshape(1, 1, 2, 1), 4)[0, 0, :, 0].tolist()
  [0.0, 0.75, 2.25, 3.0]
  """
  x = images.astype(np.float32)
  for axis in (1, 2):
    length = x.shape[axis]
    place = np.maximum((np.arange(side) + 0.5) * (length / side) - 0.5, 0)
    before = np.minimum(place.astype(int), length - 1)
    share = np.expand_dims((place - before).astype(np.float32), [i for i in range(4) if i != axis])
    first, second = (x.take(index, axis) for index in (before, np.minimum(before + 1, length - 1)))
    x = first + (second - first) * share
  return _coloured(x)


def pil_bicubic(images: np.ndarray, side: int) -> np.ndarray:
  """Return uint8 images by Pillow's bicubic filter, bit for bit.

  It smooths where it makes smaller, rounds to uint8 after each axis, and squeezes what is not square.

  >>> pil_bicubic(np.full((1, 5, 9, 1), 7, np.uint8), 2).ravel().tolist()
  [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]
  """
  from PIL import Image

  one = lambda image: np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
  return _each(one, _coloured(images))


def pil_bicubic_float(images: np.ndarray, side: int) -> np.ndarray:
  """Return float32 images by Pillow's bicubic filter of each channel, unrounded: clean-fid's "clean" mode.

  >>> pil_bicubic_float(np.uint8([0, 100]).reshape(1, 1, 2, 1), 4)[0, 0, :, 0].round().tolist()
  [-9.0, 21.0, 79.0, 109.0]
  """
  from PIL import Image

  def one(image: np.ndarray) -> np.ndarray:
    planes = (Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(image, 2, 0))
    return np.stack([np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in planes], axis=2)

  return _coloured(_each(one, images))


RESIZES: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
  "tf1-bilinear": tf1_bilinear,
  "torch-bilinear": torch_bilinear,
  "pil-bicubic": pil_bicubic,
  "pil-bicubic-float": pil_bicubic_float,
}


def with_resize(extractor: Extractor, resize: str | None) -> Extractor:
  """Return an extractor that brings images to its size in another way; None: in its own.

  Raises:
    UserError: An unknown way, or a network that takes images as they are.
  """
  if resize is None:
    return extractor
  if resize not in RESIZES:
    raise UserError("resize", resize, one_of(RESIZES, resize))
  if not (dataclasses.is_dataclass(extractor) and "how" in {f.name for f in dataclasses.fields(extractor)}):
    raise UserError("resize", resize, f"none: {extractor.name} takes images as they are")
  return cast(Extractor, dataclasses.replace(cast(Any, extractor), how=resize))


def _coloured(images: np.ndarray) -> np.ndarray:
  return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def _each(one: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
  with ThreadPoolExecutor(cores()) as threads:  # Pillow leaves Python's lock
    return np.stack(list(threads.map(one, images)))
