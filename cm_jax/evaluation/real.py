"""The real images that samples are compared with."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from cm_jax.data.companions import companions
from cm_jax.data.sources import Framing, images, open_source, validate_source
from cm_jax.errors import UserError, renamed
from cm_jax.evaluation.features import Extractor
from cm_jax.types import Model, Source


class Sources(NamedTuple):
  """Where the real images come from.

  Attributes:
    reference: What samples are compared with.
    train: What the model may have memorised.
    held_out: What it has not seen; None where none are known.
  """

  reference: str
  train: str
  held_out: str | None


def choose_sources(
  model: Model, reference: str | None = None, train: str | None = None, held_out: str | None = None
) -> Sources:
  """Return the sources to measure a model by: those given, else its own data and its `companions`.

  Raises:
    UserError: A source that is not there; none known, for a model that does not say what it was trained on.
  """
  own = model.provenance.get("source")
  reference = reference or own_reference(model)
  train = train or own or reference
  held_out = held_out or companions(train).held_out
  for field, source in (("reference", reference), ("train_source", train), ("test_source", held_out)):
    if source is not None:
      with renamed("source", field):
        validate_source(source)
  return Sources(reference, train, held_out)


def check_images(model: Model, features: Extractor, **sources: str | None) -> None:
  """Check that features, and the sources of real images by the argument they came from, fit a model's images.

  Raises:
    UserError: Names the argument, and both shapes.
  """
  shape = model.image_shape
  if features.image_shape not in (None, shape):
    given = f"of {list(features.image_shape or ())} images"
    raise UserError(
      "features", given, f"features of {list(shape)} images, as the model makes: train-features"
    )
  for field, source in sources.items():
    if source is None:
      continue
    with renamed("source", field):
      found = open_like_own(model, source)[0]["image"].shape
    if tuple(found) != shape:
      raise UserError(field, source, f"images of shape {list(shape)}, as the model's, not {list(found)}")


def own_reference(model: Model) -> str:
  """Return the source that samples of a model are compared with by default.

  Raises:
    UserError: It does not say what it was trained on.
  """
  own = model.provenance.get("source")
  if own is None:
    raise UserError(
      "reference",
      "",
      "the data to compare with, such as digits: the model does not say its own, or it is code",
    )
  return companions(own).reference


def open_like_own(model: Model, spec: str) -> Source:
  """Open a source whose images are cropped as the model's own were.

  Raises:
    UserError: It is not there, or not what it should be.
  """
  return open_source(spec, framing=framing_of(model))


def framing_of(model: Model) -> Framing:
  """Return how the images that a model was trained on became squares."""
  return Framing(**(model.provenance.get("framing") or {}))


def data_name(source: str) -> str:
  """Return how records name the data of a source.

  >>> data_name("digits:train")
  'digits'
  """
  return source.partition(":")[0]


@dataclasses.dataclass(frozen=True, eq=False)
class RealData:
  """Real images, and what is measured of them once for all samples.

  Args:
    name: The reference source as given, such as "digits"; its scheme names the Frechet distance, `fd_digits`.
    reference: uint8 [N,H,W,C], the images whose moments are the reference.
    train: uint8, the images the model may have memorised.
    held_out: uint8, real images it has not seen; None where there are none.
    features: The measure.
  """

  name: str
  reference: np.ndarray
  train: np.ndarray
  held_out: np.ndarray | None
  features: Extractor

  @classmethod
  def read(cls, sources: Sources, features: Extractor, model: Model) -> "RealData":
    """Read the sources, each once, cropped as the model's own images."""
    read = functools.cache(lambda source: images(open_like_own(model, source)))
    held_out = None if sources.held_out is None else read(sources.held_out)
    return cls(sources.reference, read(sources.reference), read(sources.train), held_out, features)

  @functools.cached_property
  def reference_features(self) -> np.ndarray:
    """The features of the reference, float32 [N, D]."""
    return self.features(self.reference).features
