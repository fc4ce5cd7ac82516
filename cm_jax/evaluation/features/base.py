"""What measures images: `extractor(images, also) -> Extracted`, the same whatever network is behind it."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from cm_jax.errors import UserError
from cm_jax.types import Array


class Extracted(NamedTuple):
  """What a network says of images; what was not asked for, or what it does not have, may be None.

  Attributes:
    features: float32 [N,D], what distances are measured in.
    logits: float32 [N,K], of its classes.
    spatial: float32 [N,S], features that keep their place in the image (sFID's).
  """

  features: np.ndarray
  logits: np.ndarray | None = None
  spatial: np.ndarray | None = None


class Extractor(Protocol):
  """A network that measures images, its weights included.

  Attributes:
    name: What distances in its features are called by: "inception", "dinov2-l", "digits".
    hash: Sha256 of its weights: `features_hash` in records.
    image_shape: The one (H, W, C) that it can measure; None for any size, of 1 or 3 channels.
    size: Number of features.
    resize: How it brings images to its own size, for records: "tf1-bilinear 299", or "none".
    gives: What it can give beside features: none, some or all of "logits" and "spatial".
  """

  @property
  def name(self) -> str: ...

  @property
  def hash(self) -> str: ...

  @property
  def image_shape(self) -> tuple[int, int, int] | None: ...

  @property
  def size(self) -> int: ...

  @property
  def resize(self) -> str: ...

  @property
  def gives(self) -> tuple[str, ...]: ...

  def __call__(self, images: np.ndarray, also: Collection[str] = (), /) -> Extracted:
    """Measure uint8 images [N,H,W,C], N >= 1, on all devices of this host.

    Args:
      images: Each host passes its own.
      also: What is wanted beside the features, of `gives`.

    Raises:
      UserError: Something is wanted that it does not give, or images that it cannot measure.
    """
    ...


def check_also(extractor: Extractor, also: Collection[str]) -> None:
  """Check that an extractor gives what is wanted of it.

  Raises:
    UserError: Names what it does not give.
  """
  for name in also:
    if name not in extractor.gives:
      raise UserError("features", extractor.name, f"features of a network that gives {name} too")


def check_images(images: np.ndarray, shape: tuple[int, int, int] | None = None) -> None:
  """Check images before a network takes them.

  Args:
    images: What was given.
    shape: The one (H, W, C) that will do; None for any, of 1 or 3 channels.

  Raises:
    UserError: Not uint8 [N,H,W,C], none, an empty one, or of another shape.
  """
  if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
    raise UserError(
      "images", f"{images.dtype.name} of shape {images.shape}", "uint8 of shape [N,H,W,C], N >= 1"
    )
  if shape is not None and images.shape[1:] != shape:
    raise UserError("images", f"of shape {list(images.shape[1:])}", f"images of shape {list(shape)}")
  if images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
    raise UserError("images", f"of shape {list(images.shape[1:])}", "images of 1 or 3 channels, not empty")


def in_batches(
  forward: Callable[[Any, Array], Sequence[Array]],
  params: Any,
  images: np.ndarray,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  prepare: Callable[[np.ndarray], np.ndarray] = lambda images: images,
) -> list[np.ndarray]:
  """Return what `forward(params, images)` gives for all images, a row an image, spread over a mesh.

  The last batch is padded, so that one size compiles; the devices work on the next batch while one is
  fetched.

  Args:
    forward: Jitted; each of its results has a row an image.
    params: Placed on the mesh already.
    images: [N, ...], N >= 1.
    batch_size: Raised to a multiple of the mesh's devices.
    mesh: Devices of this host.
    prepare: Of each batch, on the host.
  """
  batch = -(-batch_size // mesh.size) * mesh.size
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
  fetched: list[list[np.ndarray]] = []
  ahead: tuple[Sequence[Array], int] | None = None
  fetch = lambda outs, count: fetched.append([np.asarray(out)[:count] for out in outs])
  for start in range(0, len(images), batch):
    part = prepare(images[start : start + batch])
    padded = np.pad(part, ((0, batch - len(part)), *((0, 0),) * (images.ndim - 1)))
    outs = forward(params, jax.device_put(padded, rows))
    if ahead is not None:
      fetch(*ahead)
    ahead = outs, len(part)
  if ahead is not None:
    fetch(*ahead)
  return [np.concatenate(parts) for parts in zip(*fetched, strict=True)]
