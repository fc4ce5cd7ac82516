"""Inception-2015's features, what FID, sFID, Inception Score and KID are measured in."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath

from cm_jax.convert import inception as published
from cm_jax.errors import renamed
from cm_jax.evaluation.features.base import Extracted, check_also, check_images, in_batches
from cm_jax.evaluation.features.resizing import RESIZES
from cm_jax.networks import inception
from cm_jax.sampling.generate import local_mesh, replicate
from cm_jax.storage import digests, downloads, weights
from cm_jax.types import Array, Params

TAPS = {"inception": "pool", "inception-64": "tap64", "inception-192": "tap192", "inception-768": "tap768"}
_SIZES = {"pool": 2048, "tap64": 64, "tap192": 192, "tap768": 768}
# what `Extracted` calls the network's outputs; the logits of an Inception Score are those without the bias
_ALSO = {"logits": "logits_unbiased", "spatial": "spatial"}


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionFeatures:
  """Inception-2015 as an `Extractor`: images of any size, grey ones as three equal channels.

  Args:
    params: From `networks.inception.folded`.
    hash: Sha256 of the arrays they were made of, whoever published the file.
    name: A key of `TAPS`: where the features are taken; "inception" is FID's, the others are means over the
      positions of earlier layers.
    batch_size: Images at a time, the same in every call, so that one size compiles.
    how: Images come to 299 pixels, a key of `RESIZES`; FID's, TensorFlow 1's, is a part of the network.
  """

  params: Params = dataclasses.field(repr=False)
  hash: str
  name: str = "inception"
  batch_size: int = 32
  how: str = "tf1-bilinear"

  image_shape: ClassVar[None] = None
  gives: ClassVar[tuple[str, ...]] = tuple(_ALSO)

  @property
  def resize(self) -> str:
    """How it brings images to its own size, for records."""
    return f"{self.how} {inception.SIZE}"

  @property
  def size(self) -> int:
    """Number of features."""
    return _SIZES[TAPS[self.name]]

  @functools.cached_property
  def _placed(self) -> Params:
    return replicate(self.params, local_mesh())

  def __call__(self, images: np.ndarray, also: Collection[str] = ()) -> Extracted:
    """Measure uint8 [N,H,W,C]: features, float32 [N, size]; logits [N, 1008] and spatial [N, 2023] if asked.

    Raises:
      UserError: Something is wanted that it has not, or no images of 1 or 3 channels.
    """
    check_also(self, also)
    check_images(images)
    named = [name for name in _ALSO if name in also]
    forward = program((TAPS[self.name], *(_ALSO[name] for name in named)))
    prepare = lambda part: part if self.how == "tf1-bilinear" else RESIZES[self.how](part, inception.SIZE)
    found, *more = in_batches(forward, self._placed, images, self.batch_size, local_mesh(), prepare)
    return Extracted(found, **dict(zip(named, more, strict=True)))


@functools.cache
def program(fields: tuple[str, ...]) -> Callable[[Params, Array], list[Array]]:
  """Return the jitted `(params, images) -> [those of `Outputs`]`: nothing else is computed."""

  @jax.jit
  def forward(params: Params, images: Array) -> list[Array]:
    outputs = inception.inception(params, inception.prepared(images))._asdict()
    return [outputs[field] for field in fields]

  return forward


def of_arrays(arrays: Mapping[str, np.ndarray], name: str = "inception", **given: Any) -> InceptionFeatures:
  """Return the extractor of a set of arrays by torch-fidelity's names, in our layout.

  Raises:
    UserError: Names the first array that is missing, left over, of another shape, or not finite.
  """
  inception.check(arrays, "weights")
  return InceptionFeatures(inception.folded(arrays), digests.of_arrays(arrays), name, **given)


def load_inception(path: epath.PathLike | None = None, name: str = "inception") -> InceptionFeatures:
  """Return the extractor of a file: one that `convert --from=inception` wrote, or a published one.

  Args:
    path: The file; None fetches torch-fidelity's (95 MB, once) and keeps it converted in the cache.
    name: A key of `TAPS`.

  Raises:
    UserError: It is not there or not such a file; it could not be fetched.
  """
  if path is not None:
    return of_arrays(read(path), name)
  kept = (
    downloads.cache_folder() / f"inception-{published.PUBLISHED['torch-fidelity'].sha256[:16]}.safetensors"
  )
  if not kept.exists():
    published.convert_inception(published.fetch(), kept)
  return of_arrays(read(kept), name)


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Return the arrays of a weights file of ours, or of a published one."""
  if Path(path).suffix == ".safetensors":
    return weights.load_arrays(path, "weights")
  with renamed("input", "weights"):
    return published.read(Path(path))
