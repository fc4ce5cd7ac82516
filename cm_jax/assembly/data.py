"""What a config says of its data, and what it takes from them."""

import dataclasses

import ml_collections

from cm_jax.assembly.components import call
from cm_jax.data.sources import Framing, class_names, open_source, validate_source
from cm_jax.errors import UserError, renamed
from cm_jax.types import Source

FIELDS = tuple(field.name for field in dataclasses.fields(Framing))


def framing_of(config: ml_collections.ConfigDict) -> Framing:
  """Return how images become squares.

  Raises:
    UserError: A field of `config.data` out of range.
  """
  return call(Framing, {key: config.data[key] for key in FIELDS}, "config.data")


def open_data(config: ml_collections.ConfigDict) -> Source:
  """Open the source of a config.

  Raises:
    UserError: It is not there, or not what it should be.
  """
  framing = framing_of(config)
  with renamed("source", "config.data.source"):
    validate_source(config.data.source)
    return open_source(config.data.source, config.data.skip_corrupt, framing)


def resolve(config: ml_collections.ConfigDict, source: Source) -> ml_collections.ConfigDict:
  """Return the config with what it takes from the data filled in: the images' shape, the classes.

  Raises:
    UserError: The data is not what the config says, or has no labels although the model is to be conditional.
  """
  resolved, data = ml_collections.ConfigDict(config), config.data
  shape = tuple(int(size) for size in source[0]["image"].shape)
  if shape[0] != shape[1]:
    expected = "square images: config.data.crop = center and config.data.resolution = 64, or data prepare"
    raise UserError("config.data.image_shape", shape, expected)
  given = tuple(data.image_shape)
  if given not in ((), shape):
    raise UserError("config.data.image_shape", given, f"{shape}, the shape of the images of {data.source}")
  if data.conditional and not source.num_classes:
    raise UserError("config.data.conditional", True, f"False: {data.source} has no labels")
  num_classes = source.num_classes if data.conditional else 0
  if data.num_classes not in (0, num_classes):
    raise UserError("config.data.num_classes", data.num_classes, f"{num_classes}, as in {data.source}")
  names = class_names(source) if data.conditional else ()
  if tuple(data.class_names) not in ((), names):
    raise UserError("config.data.class_names", tuple(data.class_names), f"{names}, as in {data.source}")
  resolved.data.image_shape, resolved.data.num_classes, resolved.data.class_names = shape, num_classes, names
  return resolved
