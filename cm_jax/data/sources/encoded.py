"""What data sets of PNG and JPEG files share, wherever they lie: decoding, fingerprint, corrupt files."""

import abc
import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from cm_jax.data.sources.classes import count_classes
from cm_jax.data.sources.fingerprints import fingerprint, remembered
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError
from cm_jax.types import Source

EXTENSIONS = (".png", ".jpg", ".jpeg")
PNG = b"\x89PNG\r\n\x1a\n"
_READABLE = "an 8-bit grey or RGB image without alpha"


def decode(data: bytes, name: str, rgb: bool = False) -> np.ndarray:
  """Decode one PNG or JPEG to uint8 [H, W, C], C = 1 or 3.

  Args:
    data: The file's bytes.
    name: What to call the file in an error.
    rgb: Turn every 8-bit mode into RGB, as ADM does: grey, palette, CMYK; alpha is dropped.

  Raises:
    UserError: Corrupt or truncated; 16 bits a channel; without `rgb`, CMYK, alpha or another colour space.
  """
  from PIL import Image

  if data[:8] == PNG and data[24:25] == b"\x10":  # of 16-bit RGB Pillow would drop the low bits in silence
    raise UserError(name, "16 bits a channel", _READABLE)
  try:
    opened = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    opened.load()
  except Exception as error:  # Pillow raises OSError, SyntaxError, zlib.error and more for a bad file
    raise UserError(name, f"unreadable: {error}", "a whole PNG or JPEG file") from error
  exact = {"L": "L", "RGB": "RGB", "1": "L", "P": "RGB"}
  transparent = "transparency" in opened.info
  if rgb and (opened.mode in exact or opened.mode in ("CMYK", "YCbCr", "LA", "RGBA", "PA")):
    return np.array(opened.convert("RGB"), np.uint8)
  if opened.mode not in exact or transparent:
    given = f"mode {opened.mode}{' with transparency' if transparent else ''}"
    raise UserError(name, given, _READABLE)
  pixels = np.array(opened.convert(exact[opened.mode]), np.uint8)
  return pixels[:, :, None] if pixels.ndim == 2 else pixels


def check_shape(name: str, shape: tuple[int, ...], first_name: str, first_shape: tuple[int, ...]) -> None:
  """Raise UserError unless an image has the height, width and channels of the set's first one."""
  if shape != first_shape:
    given, wanted = ("x".join(map(str, size)) for size in (shape, first_shape))
    raise UserError(name, given, f"{wanted} (height x width x channels) as in {first_name}")


class EncodedImages(abc.ABC):
  """Base of a source whose images are files: a subclass says how one is read and called, and its label."""

  @property
  @abc.abstractmethod
  def labels(self) -> np.ndarray:
    """int32 [N], -1 if unlabelled."""

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
  def num_classes(self) -> int:
    """0 if unlabelled."""
    return count_classes(self.labels)

  @functools.cached_property
  def shape(self) -> tuple[int, ...]:
    """(H, W, C) of the first image, which all others must have."""
    return self.image(self.record(0)[0], 0).shape

  def image(self, data: bytes, index: int) -> np.ndarray:
    """Decode a file of the set: uint8 [H, W, C]."""
    return decode(data, self.where(index))

  def blob(self, index: int) -> bytes:
    """Return what identifies an image: a PNG's pixels, since encoders differ; a JPEG's bytes."""
    data = self.record(index)[0]
    return self.image(data, index).tobytes() if data.startswith(PNG) else data

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sha256 over the images and labels in order; neither names nor place of the files matter.

    It is remembered in the cache folder by the files' paths, sizes and times, so that a large set is read
    once and not at every start.
    """
    blobs = lambda: in_order(self.blob, range(len(self)), "fingerprint")
    return remembered(self.stamp(), lambda: fingerprint(f"uint8 {self.shape}", blobs(), self.labels))

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    data, label = self.record(index)
    image = self.image(data, index)
    check_shape(self.where(index), image.shape, self.where(0), self.shape)
    return {"image": image, "label": label}


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
  def labels(self) -> np.ndarray:
    """int32 [n]."""
    return self.source.labels[self.rows]

  @property
  def num_classes(self) -> int:
    """As of the whole."""
    return self.source.num_classes

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
