"""DINOv2's class token, what FD-DINOv2 is measured in (Stein et al. 2023, dgm-eval; EDM2)."""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath

from cm_jax.convert import dinov2 as published
from cm_jax.errors import renamed
from cm_jax.evaluation.features.base import Extracted, check_also, check_images, in_batches
from cm_jax.evaluation.features.resizing import RESIZES
from cm_jax.networks import dinov2
from cm_jax.sampling.generate import local_mesh, replicate
from cm_jax.storage import digests, downloads
from cm_jax.types import Array, Params


@dataclasses.dataclass(frozen=True, eq=False)
class DinoFeatures:
  """DINOv2 as an `Extractor`: images of any size, grey ones as three equal channels.

  Args:
    params: From `networks.dinov2.params_of`, for images of 224 pixels.
    hash: Sha256 of the arrays they were made of, whoever published the file.
    name: What distances in it are called by: "dinov2-l".
    batch_size: Images at a time, the same in every call, so that one size compiles.
    how: Images come to 224 pixels, a key of `RESIZES`.
  """

  params: Params = dataclasses.field(repr=False)
  hash: str
  name: str
  batch_size: int = 32
  how: str = "pil-bicubic"

  image_shape: ClassVar[None] = None
  gives: ClassVar[tuple[str, ...]] = ()

  @property
  def resize(self) -> str:
    """How it brings images to its own size, for records."""
    return f"{self.how} {dinov2.SIDE}"

  @property
  def size(self) -> int:
    """Number of features."""
    return self.params["cls_token"].shape[0]

  @functools.cached_property
  def _placed(self) -> Params:
    return replicate(self.params, local_mesh())

  def __call__(self, images: np.ndarray, also: Collection[str] = ()) -> Extracted:
    """Measure uint8 [N,H,W,C]: features, float32 [N, size].

    Raises:
      UserError: Something is wanted that it has not, or no images of 1 or 3 channels.
    """
    check_also(self, also)
    check_images(images)
    prepare = lambda part: RESIZES[self.how](part, dinov2.SIDE)
    return Extracted(*in_batches(_forward, self._placed, images, self.batch_size, local_mesh(), prepare))


@jax.jit
def _forward(params: Params, images: Array) -> list[Array]:
  return [dinov2.dinov2(params, dinov2.normalized(images))]


def of_arrays(arrays: Mapping[str, np.ndarray], name: str, size: dinov2.Size, **given: Any) -> DinoFeatures:
  """Return the extractor of a set of arrays by facebookresearch's names, in our layout.

  Raises:
    UserError: Names the first array that is missing, left over, of another shape, or not finite.
  """
  dinov2.check(arrays, size, "weights")
  return DinoFeatures(dinov2.params_of(arrays), digests.of_arrays(arrays), name, **given)


def load_dinov2(path: epath.PathLike | None = None, name: str = "dinov2-l") -> DinoFeatures:
  """Return the extractor of a file: one that `convert --from=dinov2-l` wrote, or a published one.

  Args:
    path: The file; None fetches facebookresearch's, once, and keeps it converted in the cache.
    name: A key of `networks.dinov2.SIZES`.

  Raises:
    UserError: It is not there or not such a file; it could not be fetched.
  """
  size = dinov2.SIZES[name]
  if path is not None:
    with renamed("input", "weights"):
      return of_arrays(published.read(name, str(path)), name, size)
  kept = downloads.cache_folder() / f"{name}-{published.PUBLISHED[name][1][:16]}.safetensors"
  if not kept.exists():
    published.convert_dinov2(name, published.fetch(name), kept)
  return of_arrays(published.read(name, kept), name, size)
