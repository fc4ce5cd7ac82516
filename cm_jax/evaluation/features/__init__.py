"""What images are measured by: networks with their weights, by the name that --features takes.

A new one is a file and a line here: `FEATURES[name](weights)` reads the weights it is given, or fetches what
is published.
"""

import functools
from collections.abc import Callable, Mapping

from etils import epath

from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.features.base import Extracted as Extracted
from cm_jax.evaluation.features.base import Extractor
from cm_jax.evaluation.features.classifier import ClassifierFeatures as ClassifierFeatures
from cm_jax.evaluation.features.classifier import load_classifier as load_classifier
from cm_jax.evaluation.features.classifier import save_features as save_features
from cm_jax.evaluation.features.classifier import train_features as train_features
from cm_jax.evaluation.features.digits import load_digits
from cm_jax.evaluation.features.dinov2 import load_dinov2
from cm_jax.evaluation.features.inception import TAPS, load_inception
from cm_jax.evaluation.features.resizing import RESIZES as RESIZES
from cm_jax.evaluation.features.resizing import with_resize as with_resize
from cm_jax.evaluation.features.trained import TrainedFeatures as TrainedFeatures
from cm_jax.evaluation.features.trained import load_trained as load_trained
from cm_jax.evaluation.features.trained import train_resnet as train_resnet
from cm_jax.networks.dinov2 import SIZES
from cm_jax.storage import bucket, fetched, whole

FEATURES: Mapping[str, Callable[[epath.PathLike | None], Extractor]] = {
  "digits": load_digits,
  **{name: functools.partial(load_inception, name=name) for name in TAPS},
  **{name: functools.partial(load_dinov2, name=name) for name in SIZES},
}


def load_features(name: epath.PathLike, weights: epath.PathLike | None = None) -> Extractor:
  """Return what images are measured by.

  Args:
    name: A key of `FEATURES`, or the folder that `train-features` wrote.
    weights: File or folder of the weights of a network of `FEATURES`; None fetches what is published, and
      trains what is trained on the spot.

  Raises:
    UserError: No such network or folder; weights that are not there, not whole, or of another network.
  """
  if weights is not None and bucket.is_bucket(weights) and not fetched.is_folder(weights, "weights"):
    weights = fetched.local(weights, "weights")
  if str(name) in FEATURES:
    return FEATURES[str(name)](weights)
  if weights is not None:
    raise UserError("weights", str(weights), f"none: {name} holds its own")
  if not whole.place(name).exists():
    expected = f"{one_of(FEATURES, name)}; or the folder of an own one: train-features makes it"
    raise UserError("features", str(name), expected)
  return load_trained(name)
