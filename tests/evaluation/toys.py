"""An extractor of a few numbers without a network, and a set of images it tells apart."""

import dataclasses

import numpy as np

from cm_jax.evaluation.features.base import Extracted, check_also, check_images

SIZE, SPATIAL, CLASSES = 4, 5, 3


@dataclasses.dataclass(frozen=True)
class ToyExtractor:
  """Random projections of the pixels, in float32; counts the images that it is shown."""

  name: str = "inception"
  image_shape: tuple | None = None
  gives: tuple = ("logits", "spatial")
  hash: str = "7" * 64
  resize: str = "none"
  size: int = SIZE
  shown: list = dataclasses.field(default_factory=list)

  def __call__(self, images, also=()):
    check_also(self, also)
    check_images(images, self.image_shape)
    self.shown.append(len(images))
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    project = lambda seed, n: np.random.default_rng(seed).standard_normal((flat.shape[1], n), np.float32)
    rows = [flat @ project(seed, n) for seed, n in enumerate((SIZE, CLASSES, SPATIAL))]
    return Extracted(rows[0], rows[1] if "logits" in also else None, rows[2] if "spatial" in also else None)


def pictures(
  count: int, seed: int = 0, shape: tuple[int, int, int] = (6, 5, 3), bright: int = 0
) -> np.ndarray:
  """Return uint8 images [count, *shape]."""
  values = np.random.default_rng(seed).integers(0, 200, (count, *shape))
  return (values + bright).astype(np.uint8)
