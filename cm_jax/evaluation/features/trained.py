"""Features of one's own: a small residual network trained on any labelled images. Their FD is never FID."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm_jax.data.pipeline import epoch_order
from cm_jax.diffusion.noise import check_seed
from cm_jax.diffusion.pixels import normalize
from cm_jax.diffusion.precision import computing_in
from cm_jax.errors import DAMAGE, UserError
from cm_jax.evaluation.features import stored
from cm_jax.evaluation.features.base import Extracted, check_also, check_images, in_batches
from cm_jax.evaluation.features.classifier import ClassifierFeatures, load_classifier
from cm_jax.evaluation.features.fitting import fit
from cm_jax.networks.resnet import ResNet, widths_for
from cm_jax.sampling.generate import local_mesh, replicate
from cm_jax.storage import whole
from cm_jax.storage.weights import flatten
from cm_jax.types import Array, Params

NETWORK = "resnet"  # in features.json; what has no network there is the digits' small classifier
_BATCH = 256  # of the feature passes
_SCALED_BY = 10_000  # images that the scale is taken over
_STORED = ("num_classes", "scale", "accuracy", "seed", "name")


@functools.partial(jax.jit, static_argnames=("num_classes", "widths"))
def _forward(params: Params, images: Array, num_classes: int, widths: tuple[int, ...]) -> tuple[Array, Array]:
  with computing_in("highest"):  # what measures is the same on every machine
    outputs: Any = ResNet(num_classes, widths).apply({"params": params}, normalize(images))
  return outputs


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedFeatures:
  """A residual network trained on labelled images, as an `Extractor`.

  Args:
    params: The network's.
    num_classes: Of its logits.
    image_shape: (H, W, C) of the images it was trained on, and can measure.
    scale: What its features are multiplied by, so that over the data trace(cov) is their number.
    accuracy: On the images held out while training.
    seed: Of the training.
    name: What distances in its features are called by.
    class_names: Of the classes by number; () where they have none.
  """

  params: Params = dataclasses.field(repr=False)
  num_classes: int
  image_shape: tuple[int, int, int]
  scale: float
  accuracy: float
  seed: int
  name: str
  class_names: tuple[str, ...] = ()

  gives: ClassVar[tuple[str, ...]] = ("logits",)
  resize: ClassVar[str] = "none"

  @property
  def size(self) -> int:
    """Number of features."""
    return widths_for(*self.image_shape[:2])[-1]

  def __call__(self, images: np.ndarray, also: Collection[str] = ()) -> Extracted:
    """Measure uint8 [N, H, W, C]: float32 features [N, size], scaled, and logits [N, num_classes].

    Raises:
      UserError: Something is wanted that it has not, or images of another shape.
    """
    check_also(self, also)
    check_images(images, self.image_shape)
    mesh = local_mesh()
    widths = widths_for(*self.image_shape[:2])
    forward = functools.partial(_forward, num_classes=self.num_classes, widths=widths)
    features, logits = in_batches(forward, replicate(self.params, mesh), images, _BATCH, mesh)
    return Extracted(features * np.float32(self.scale), logits)

  @functools.cached_property
  def hash(self) -> str:
    """Sha256 of the weights, as stored: `features_hash` in records."""
    return stored.sha256(self.params)

  def save(self, folder: epath.PathLike) -> None:
    """Write `features.safetensors` and, last, `features.json`: the pair is whole if the second is there.

    Raises:
      UserError: The place cannot be written, or the disk is full.
    """
    info = {"network": NETWORK, **{name: getattr(self, name) for name in _STORED}}
    lists = {"image_shape": list(self.image_shape), "class_names": list(self.class_names)}
    stored.write(folder, self.params, {**info, **lists})


def train_resnet(
  images: np.ndarray,
  labels: np.ndarray,
  name: str,
  seed: int = 0,
  num_steps: int = 2000,
  batch_size: int = 128,
  learning_rate: float = 2e-3,
  held_out: float = 0.1,
  flip: bool = True,
  class_names: Sequence[str] = (),
) -> TrainedFeatures:
  """Train a classifier to measure images by: Adam, cosine to zero, images moved by up to 2 pixels.

  Args:
    images: uint8 [N, H, W, C], C = 1 or 3.
    labels: int32 [N], from 0.
    name: What distances in its features are called by.
    seed: Of the initial weights, the batches and the part held out.
    num_steps, batch_size, learning_rate: Of the training.
    held_out: The share of the images that is kept from the training, for the accuracy.
    flip: Mirror half of the images: not for writing.
    class_names: Kept with the weights.

  Raises:
    UserError: An unlabelled image, one class only, less images than a batch.
  """
  check_seed(seed)
  check_images(images)
  if labels.min() < 0:
    raise UserError("labels", int(labels.min()), "a class number from 0 for every image")
  if len(np.unique(labels)) < 2:
    raise UserError("labels", f"all {int(labels[0])}", "images of two classes at least")
  test, train = np.split(epoch_order(len(images), seed, 0), [max(1, round(len(images) * held_out))])
  if len(train) < batch_size:
    expected = f"at least a batch of {batch_size}, beside the {len(test)} held out for the accuracy"
    raise UserError("images", len(images), expected)
  num_classes, (height, width, channels) = int(labels.max()) + 1, images.shape[1:]
  shape = height, width, channels
  network, vary = ResNet(num_classes, widths_for(*shape[:2])), _mirrored_and_moved if flip else _moved
  given = images[train], labels[train], seed, num_steps, batch_size, learning_rate
  params = fit(network, vary, *given, clip=1.0)
  trained = TrainedFeatures(params, num_classes, shape, 1.0, float("nan"), seed, name, tuple(class_names))
  logits = trained(images[test]).logits
  assert logits is not None
  accuracy = float((logits.argmax(1) == labels[test]).mean())
  raw = trained(images[train[:_SCALED_BY]]).features
  scale = float(np.sqrt(raw.shape[1] / raw.astype(np.float64).var(0, ddof=1).sum()))
  return dataclasses.replace(trained, scale=scale, accuracy=accuracy)


def _mirrored_and_moved(x: Array, key: Array) -> Array:
  of_corner, of_flip = jax.random.split(key)
  mirrored = jax.random.bernoulli(of_flip, 0.5, (len(x), 1, 1, 1))
  return _shifted(jnp.where(mirrored, x[:, :, ::-1], x), of_corner)


def _moved(x: Array, key: Array) -> Array:
  return _shifted(x, jax.random.split(key)[0])


def _shifted(x: Array, key: Array) -> Array:
  """Move each image by up to 2 pixels both ways, its edge repeated."""
  batch, height, width, channels = x.shape
  padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
  corners = jax.random.randint(key, (batch, 2), 0, 5)
  cut = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))
  return jax.vmap(cut)(padded, corners)


def load_trained(folder: epath.PathLike) -> TrainedFeatures | ClassifierFeatures:
  """Read what `train-features` wrote, of either network.

  Raises:
    UserError: Missing, incomplete or altered files, weights of another network than is stated.
  """
  params, info = stored.read(folder)
  if "network" not in info:
    return load_classifier(folder)
  described = whole.place(folder) / "features.json"
  if (network := info.pop("network")) != NETWORK:
    raise UserError(f"{described}: network", network, NETWORK)
  try:
    height, width, channels = shape = tuple(info.pop("image_shape"))
    names = tuple(info.pop("class_names"))
    if not all(type(size) is int and size > 0 for size in (*shape, info["num_classes"])):
      raise UserError(
        f"{described}: image_shape, num_classes", [*shape, info["num_classes"]], "whole numbers"
      )
    found = TrainedFeatures(params=params, image_shape=(height, width, channels), class_names=names, **info)
    _check_weights(found, str(folder))
    return found
  except DAMAGE as error:
    raise stored.damaged(folder, error) from error


def _check_weights(features: TrainedFeatures, folder: str) -> None:
  """Check that weights are those of the network that features.json describes."""
  network = ResNet(features.num_classes, widths_for(*features.image_shape[:2]))
  one = jax.ShapeDtypeStruct((1, *features.image_shape), np.float32)
  wanted = jax.eval_shape(network.init, jax.random.key(0), one)["params"]
  shapes = lambda params: {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}
  if shapes(features.params) != shapes(wanted):
    raise UserError(folder, "features.safetensors", "the weights of the network that features.json describes")
