"""A source seen in another way: some of its images, or all of them cropped."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from cm_jax.data.sources.classes import Classes, class_names, labels
from cm_jax.data.sources.encoded import EncodedImages
from cm_jax.data.sources.fingerprints import fingerprint
from cm_jax.data.sources.framing import AS_THEY_ARE, Framing
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError
from cm_jax.types import Source


def framed(source: Source, framing: Framing, spec: str) -> Source:
  """Return a source whose images are read and cropped as `framing` says.

  Raises:
    UserError: A crop of what are no images.
  """
  if isinstance(source, EncodedImages):
    return source if framing == source.framing else Framed(source, framing)
  if not (framing.crops or framing.resolution):
    return source
  first = np.asarray(source[0]["image"])
  if first.dtype != np.uint8 or first.ndim != 3 or first.shape[-1] not in (1, 3):
    given = f"{first.dtype} {list(first.shape)}"
    raise UserError("source", spec, f"images to crop, uint8 [H, W, C] with C = 1 or 3, not {given}")
  return FramedArrays(source, framing, spec)


@dataclasses.dataclass(frozen=True, eq=False)
class Subset(EncodedImages):
  """Some images of a source, in its order; its fingerprint is that of a set of these images alone.

  Args:
    source: The whole.
    rows: int64 [n], which of its images.
  """

  source: EncodedImages
  rows: np.ndarray

  @property
  def classes(self) -> Classes:
    """The labels of these images, and the names of the whole's classes."""
    return Classes(self.source.labels[self.rows], self.source.class_names)

  @property
  def num_classes(self) -> int:
    """As of the whole."""
    return self.source.num_classes

  @property
  def framing(self) -> Framing:
    """As of the whole."""
    return self.source.framing

  @property
  def notes(self) -> list[str]:
    """As of the whole."""
    return self.source.notes

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""
    return self.source.record(self.rows[index])

  def where(self, index: int) -> str:
    """Return what the whole calls the file."""
    return self.source.where(self.rows[index])

  def stamp(self) -> Iterable[str]:
    """Yield the whole's, and which images these are."""
    return [*self.source.stamp(), hashlib.sha256(self.rows.tobytes()).hexdigest()]

  def __len__(self) -> int:
    return len(self.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Framed(EncodedImages):
  """The images of a source, read and cropped in another way.

  Args:
    source: The files.
    framing: How.
  """

  source: EncodedImages
  framing: Framing = AS_THEY_ARE

  @property
  def classes(self) -> Classes:
    """As of the source."""
    return self.source.classes

  @property
  def num_classes(self) -> int:
    """As of the source."""
    return self.source.num_classes

  @property
  def notes(self) -> list[str]:
    """As of the source."""
    return self.source.notes

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""
    return self.source.record(index)

  def where(self, index: int) -> str:
    """Return what the source calls the file."""
    return self.source.where(index)

  def stamp(self) -> Iterable[str]:
    """Yield the source's."""
    return self.source.stamp()

  def __len__(self) -> int:
    return len(self.source)


def without_corrupt(source: EncodedImages) -> tuple[EncodedImages, list[str]]:
  """Decode every image once; return the source without those that cannot be, and an error line for each.

  Raises:
    UserError: None can be decoded.
  """

  def problem(index: int) -> str:
    try:
      source.image(source.record(index)[0], index)
    except UserError as error:
      return str(error)
    return ""

  problems = list(in_order(problem, range(len(source)), "checking images"))
  rows = np.array([index for index, said in enumerate(problems) if not said], np.int64)
  if not len(rows):
    raise UserError("source", f"{len(problems)} corrupt images", f"one that is whole ({problems[0]})")
  whole = source if len(rows) == len(problems) else Subset(source, rows)
  return whole, [said for said in problems if said]


@dataclasses.dataclass(frozen=True, eq=False)
class FramedArrays:
  """A source of decoded images, cropped.

  Args:
    source: Its images are uint8 [H, W, C], all of one shape.
    framing: How.
    spec: What the source was opened with.
  """

  source: Source
  framing: Framing
  spec: str

  @property
  def labels(self) -> np.ndarray:
    """As of the source."""
    return labels(self.source)

  @property
  def class_names(self) -> tuple[str, ...]:
    """As of the source."""
    return class_names(self.source)

  @property
  def num_classes(self) -> int:
    """As of the source."""
    return self.source.num_classes

  @functools.cached_property
  def fingerprint(self) -> str:
    """The source's, with what the crop makes of it."""
    framing = self.framing
    if not framing.crops:
      return self.source.fingerprint
    about = f"{framing.crop} {framing.resolution} of {self.source.fingerprint}"
    return fingerprint(about, [], np.zeros(0, np.int32))

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    item = self.source[index]
    channels = item["image"].shape[2] if self.framing.keeps_grey else 3
    return {**item, "image": self.framing(item["image"], f"{self.spec}, image {index}", channels)}
