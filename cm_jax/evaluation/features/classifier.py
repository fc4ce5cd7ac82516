"""Features to measure images by where no public network fits: of a small classifier, trained on the spot."""

import dataclasses
import functools
import math
from collections.abc import Collection
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
from cm_jax.evaluation.features.fitting import fit
from cm_jax.networks.classifier import SmallClassifier
from cm_jax.sampling.generate import local_mesh, replicate
from cm_jax.types import Array, Params

_BATCH = 256  # of the feature passes: their last batch is padded to it, so that one size is compiled


@functools.cache
def _classifier(num_classes: int) -> SmallClassifier:
  return SmallClassifier(num_classes=num_classes)


@functools.partial(jax.jit, static_argnames="num_classes")
def _forward(params: Params, images: Array, num_classes: int) -> tuple[Array, Array]:
  with computing_in("highest"):  # what measures is the same on every machine
    outputs: Any = _classifier(num_classes).apply({"params": params}, normalize(images))
  return outputs


def _shift(x: Array, key: Array) -> Array:
  """Move each image by -1, 0 or 1 pixel both ways; -1 (black) comes in at the edge."""
  batch, height, width, channels = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
  corners = jax.random.randint(key, (batch, 2), 0, 3)
  cut = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))
  return jax.vmap(cut)(padded, corners)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierFeatures:
  """A trained classifier as an `Extractor`.

  Args:
    params: The classifier's.
    num_classes: Of its logits.
    scale: What its features are multiplied by, so that over the data trace(cov) is their number: distances
      then read alike whatever the network's own scale.
    accuracy: On the images held out while training.
    seed: Of the training.
    name: What distances in its features are called by.
  """

  params: Params = dataclasses.field(repr=False)
  num_classes: int
  scale: float
  accuracy: float
  seed: int
  name: str = "classifier"

  gives: ClassVar[tuple[str, ...]] = ("logits",)
  resize: ClassVar[str] = "none"

  @property
  def size(self) -> int:
    """Number of features."""
    return self.params["features"]["weight"].shape[1]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the square images it was trained on, and can measure."""
    width, channels = self.params["conv3"]["weight"].shape[-1], self.params["conv0"]["weight"].shape[2]
    side = 2 * math.isqrt(self.params["features"]["weight"].shape[0] // width)  # halved once
    return side, side, channels

  def __call__(self, images: np.ndarray, also: Collection[str] = ()) -> Extracted:
    """Measure uint8 [N, H, W, C]: float32 features [N, 64], scaled, and logits [N, num_classes].

    Raises:
      UserError: Something is wanted that it has not, or images of another shape.
    """
    check_also(self, also)
    check_images(images, self.image_shape)
    mesh = local_mesh()
    forward = functools.partial(_forward, num_classes=self.num_classes)
    features, logits = in_batches(forward, replicate(self.params, mesh), images, _BATCH, mesh)
    return Extracted(features * np.float32(self.scale), logits)

  @functools.cached_property
  def hash(self) -> str:
    """Sha256 of the weights, as stored: `features_hash` in records."""
    return stored.sha256(self.params)


def train_features(
  images: np.ndarray,
  labels: np.ndarray,
  seed: int = 0,
  num_steps: int = 400,
  batch_size: int = 128,
  learning_rate: float = 1e-3,
  held_out: float = 0.2,
  name: str = "classifier",
) -> ClassifierFeatures:
  """Train the classifier that FD is measured in: Adam, cosine to zero, images moved by up to a pixel.

  A learning rate of 3e-3 is a little more accurate on the digits, but leaves 25 of the 64 features alive
  instead of 37.

  Args:
    images: uint8 [N, H, W, C]: the whole data set.
    labels: int32 [N], every class from 0 present.
    seed: Of the initial weights, the batches and the part held out.
    num_steps, batch_size, learning_rate: Of the training.
    held_out: The share of the images that is kept from the training, for the accuracy.
    name: What distances in its features are called by.

  Raises:
    UserError: An unlabelled image.
  """
  check_seed(seed)
  if labels.min() < 0:
    raise UserError("labels", int(labels.min()), "a class number from 0 for every image")
  num_classes = int(labels.max()) + 1
  order = epoch_order(len(images), seed, 0)
  test, train = np.split(order, [round(len(order) * held_out)])
  params = fit(
    _classifier(num_classes), _shift, images[train], labels[train], seed, num_steps, batch_size, learning_rate
  )
  trained = ClassifierFeatures(params, num_classes, 1.0, float("nan"), seed, name)
  raw, logits, _ = trained(images)
  assert logits is not None
  accuracy = float((logits[test].argmax(1) == labels[test]).mean())
  scale = float(np.sqrt(raw.shape[1] / raw.astype(np.float64).var(0, ddof=1).sum()))
  return dataclasses.replace(trained, scale=scale, accuracy=accuracy)


def save_features(folder: epath.PathLike, features: ClassifierFeatures) -> None:
  """Write `features.safetensors` and, last, `features.json`: the pair is whole if the second is there.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  info = {name: getattr(features, name) for name in ("num_classes", "scale", "accuracy", "seed", "name")}
  stored.write(folder, features.params, info)


def load_classifier(folder: epath.PathLike) -> ClassifierFeatures:
  """Read what `save_features` wrote.

  Raises:
    UserError: Missing, incomplete or altered files.
  """
  params, info = stored.read(folder)
  try:
    return ClassifierFeatures(params=params, **info)
  except DAMAGE as error:
    raise stored.damaged(folder, error) from error
