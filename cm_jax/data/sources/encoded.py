"""What data sets of image files share, wherever they lie: decoding, fingerprint, corrupt files."""

import abc
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cm_jax.data.sources.classes import UNLABELLED, Classes, count_classes
from cm_jax.data.sources.decoding import LOSSLESS, decode, marks, read_header
from cm_jax.data.sources.fingerprints import fingerprint, remembered
from cm_jax.data.sources.framing import AS_THEY_ARE, Framing
from cm_jax.data.sources.survey import Survey, survey
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError
from cm_jax.types import Source


def check_shape(name: str, shape: tuple[int, ...], first_name: str, first_shape: tuple[int, ...]) -> None:
  """Raise UserError unless an image has the height, width and channels of the set's first one."""
  if shape != first_shape:
    given, wanted = ("x".join(map(str, size)) for size in (shape, first_shape))
    raise UserError(name, given, f"{wanted} (height x width x channels) as in {first_name}, or a crop")


class EncodedImages(abc.ABC):
  """Base of a source whose images are files: a subclass says how one is read and called, and its label."""

  @property
  @abc.abstractmethod
  def classes(self) -> Classes:
    """The labels, and the classes' names."""

  @abc.abstractmethod
  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""

  @abc.abstractmethod
  def where(self, index: int) -> str:
    """Return what an error calls the file."""

  @abc.abstractmethod
  def stamp(self) -> Iterable[str]:
    """Yield what changes when a file does, without reading the files: path, size and time."""

  @property
  def labels(self) -> np.ndarray:
    """int32 [N], -1 if unlabelled."""
    return self.classes.labels

  @property
  def class_names(self) -> tuple[str, ...]:
    """In the order of the classes' numbers; () where they have none."""
    return self.classes.names

  @property
  def num_classes(self) -> int:
    """0 if unlabelled."""
    return len(self.class_names) or count_classes(self.labels)

  @property
  def notes(self) -> list[str]:
    """What a person should know of the set, a line each: what was left out."""
    return []

  @property
  def framing(self) -> Framing:
    """How the files become images of one shape."""
    return AS_THEY_ARE

  @functools.cached_property
  def survey(self) -> Survey:
    """What kinds of files these are; reads their headers once."""
    return survey(self.record, self.where, len(self), self.stamp())

  @functools.cached_property
  def shape(self) -> tuple[int, ...]:
    """(H, W, C) of the first image, which all others must have; of a crop what it makes."""
    if self.framing.crops:
      channels = 1 if self.framing.keeps_grey and self.survey.grey else 3
      return (self.framing.resolution, self.framing.resolution, channels)
    return self.image(self.record(0)[0], 0).shape

  def pixels(self, data: bytes, index: int) -> np.ndarray:
    """Decode a file of the set: uint8 [H, W, C], before any crop."""
    return decode(data, self.where(index), self.framing.reading, self.framing.smaller)

  def image(self, data: bytes, index: int) -> np.ndarray:
    """Decode and crop a file of the set: uint8 [H, W, C]."""
    pixels = self.pixels(data, index)
    channels = self.shape[2] if self.framing.crops else pixels.shape[2]
    return self.framing(pixels, self.where(index), channels)

  def blob(self, index: int) -> bytes:
    """Return what identifies an image before any crop: pixels where encoders differ, else the file."""
    data = self.record(index)[0]
    header = read_header(data, self.where(index))
    if header.format not in LOSSLESS:
      return marks(header, self.framing.reading) + data
    pixels = self.pixels(data, index)
    size = f"{pixels.shape}\0" if self.framing.crops else ""  # else all have the shape that is hashed first
    return size.encode() + pixels.tobytes()

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sha256 over the images and labels in order, and the crop; neither names nor place of the files matter.

    It is remembered in the cache folder by the files' paths, sizes and times, so that a large set is read
    once and not at every start.
    """
    return self._hash("", lambda: self.labels)

  @property
  def unlabelled_fingerprint(self) -> str:
    """The fingerprint that the images would have without labels."""
    return self._hash("unlabelled\n", lambda: np.full(len(self), UNLABELLED, np.int32))

  def _hash(self, about_labels: str, labels: Callable[[], np.ndarray]) -> str:
    framing = self.framing
    about = f"uint8 {self.shape}" + (f" {framing.crop}" if framing.crops else "")
    blobs = lambda: in_order(self.blob, range(len(self)), "fingerprint")
    stamp = [f"{framing}\n", about_labels, *self.stamp()]
    return remembered(stamp, lambda: fingerprint(about, blobs(), labels()))

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    data, label = self.record(index)
    image = self.image(data, index)
    check_shape(self.where(index), image.shape, self.where(0), self.shape)
    return {"image": image, "label": label}


def images(source: Source) -> np.ndarray:
  """Decode a whole source into RAM: [N, H, W, C], uint8, or float32 latents. It keeps nothing: call it once.

  Raises:
    UserError: An image is unreadable or not like the first.
  """
  first = source[0]["image"]
  out = np.empty((len(source), *first.shape), first.dtype)
  decoded = in_order(lambda index: source[index]["image"], range(len(source)), "decoding")
  for index, image in enumerate(decoded):
    check_shape(f"image {index}", image.shape, "image 0", first.shape)
    out[index] = image
  return out
