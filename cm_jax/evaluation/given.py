"""Images that are there already, read in batches: a folder, a zip, an array file of any peer, any source."""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Generator
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from cm_jax.data.sources import SOURCES, Framing, open_source
from cm_jax.data.sources.entries import ArrayFile, check_total
from cm_jax.data.sources.threads import in_order
from cm_jax.diffusion.pixels import QUANTISERS
from cm_jax.errors import UserError, renamed
from cm_jax.storage import bucket, fetched
from cm_jax.types import Source

# What peers call their images in an .npz, the first that is there: ADM and most; jcm; others.
KEYS = ("arr_0", "samples", "images", "image", "x")
_LOOK = 16  # images that tell [0, 1] from [-1, 1]
_BAD = (*(OSError, EOFError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError),
        *(MemoryError, zipfile.BadZipFile, zlib.error))  # fmt: skip


class Images(Protocol):
  """Images that can be read in order, from any of them on.

  Attributes:
    spec: As they were named.
    shape: (H, W, C), the same of all.
    quantiser: How they became uint8, for records; None: as given.
  """

  @property
  def spec(self) -> str: ...

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def quantiser(self) -> str | None: ...

  @property
  def fingerprint(self) -> str | None: ...

  def __len__(self) -> int: ...

  def batches(self, start: int, stop: int, size: int, /) -> Generator[np.ndarray, None, None]:
    """Yield images start to stop - 1, uint8 [<= size, H, W, C].

    Raises:
      UserError: One that cannot be read, is of another size or holds what is no number.
    """
    ...


def open_images(path: str, field: str, quantiser: str = "edm", framing: Framing | None = None) -> Images:
  """Open images by a path or the name of a source.

  Args:
    path: A folder, a .zip, an .npz or .npy of arrays, or `scheme:argument`.
    field: As errors name it.
    quantiser: How floats in [-1, 1] become uint8, a key of `QUANTISERS`.
    framing: How images of a folder, zip or data set become squares.

  Raises:
    UserError: Not there, no images, or of another form.
  """
  if bucket.is_bucket(path):
    path = f"folder:{path}" if fetched.is_folder(path, field) else str(fetched.local(path, field))
  scheme, _, argument = path.partition(":")
  spec = path
  if scheme not in SOURCES:
    endings = {".zip": "zip", ".npz": "npz", ".npy": "npz"}
    kind = "folder" if os.path.isdir(path) else endings.get(os.path.splitext(path)[1])
    if kind is None or not os.path.exists(path):
      expected = "a folder, .zip, .npz or .npy of images that is there, or a source such as digits:test"
      raise UserError(field, path, expected)
    spec, scheme, argument = f"{kind}:{path}", kind, path
  frames = framing is not None and (framing.crops or framing.resolution)
  if scheme == "npz" and not frames:
    return ArrayImages.open(str(fetched.local(argument, field)), spec, field, quantiser)
  with renamed("source", field):
    source = open_source(spec, framing=framing or Framing())
  return SourceImages(source, spec, field)


@dataclasses.dataclass(frozen=True, eq=False)
class SourceImages:
  """The images of a data set."""

  source: Source
  spec: str
  field: str
  quantiser: str | None = None

  def __post_init__(self):
    first = np.asarray(self.source[0]["image"])
    if first.dtype != np.uint8:
      raise UserError(self.field, self.spec, f"uint8 images, not {first.dtype} {list(first.shape)}")

  @property
  def shape(self) -> tuple[int, ...]:
    """(H, W, C) of the first."""
    return tuple(np.asarray(self.source[0]["image"]).shape)

  @property
  def fingerprint(self) -> str:
    """Of the data set."""
    return self.source.fingerprint

  def __len__(self) -> int:
    return len(self.source)

  def batches(self, start: int, stop: int, size: int) -> Generator[np.ndarray, None, None]:
    """Yield uint8 [<= size, H, W, C], decoded by a thread a core."""
    for begin in range(start, stop, size):
      rows = range(begin, min(begin + size, stop))
      images = list(in_order(lambda index: self.source[index]["image"], rows))
      for index, image in zip(rows, images, strict=True):
        if image.shape != self.shape:
          given, wanted = ("x".join(map(str, shape)) for shape in (image.shape, self.shape))
          raise UserError(f"{self.spec}, image {index}", given, f"{wanted} as the first, or a crop")
      yield np.stack(images)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayImages:
  """The images of an .npz or .npy, never in memory as a whole: [N,H,W,C] or [N,C,H,W], uint8, or floats in
  [-1, 1]."""

  path: str
  spec: str
  field: str
  key: str
  stored: tuple[int, ...]
  is_float: bool
  rounding: str

  @classmethod
  def open(cls, path: str, spec: str, field: str, rounding: str) -> "ArrayImages":
    """Read what kind of array a file holds.

    Raises:
      UserError: No such file, pickled objects, or an array of another kind.
    """
    expected = "an .npz or .npy with an array of images (no pickled objects)"
    try:
      key = _key(path)
      with ArrayFile(path, key) as file:
        stored, dtype = file.shape, file.dtype
        first = file.rows(min(_LOOK, *stored[:1])) if stored else np.zeros(0)
    except FileNotFoundError:
      raise UserError(field, spec, "a file that is there") from None
    except _BAD as error:
      raise UserError(field, spec, f"{expected} ({' '.join(str(error).split())[:200]})") from None
    fits = len(stored) == 4 and 0 not in stored and (stored[3] in (1, 3) or stored[1] in (1, 3))
    if not fits or (dtype != np.uint8 and dtype.kind != "f"):
      given = f"{key} {dtype} {list(stored)}"
      raise UserError(field, spec, f"images uint8 [N,H,W,C] or floats in [-1, 1], C = 1 or 3, not {given}")
    if dtype.kind == "f" and first.min() >= 0:  # NaN is told where it is met
      raise UserError(field, spec, "floats in [-1, 1], or uint8: no number of the first images is negative")
    return cls(path, spec, field, key, stored, dtype.kind == "f", rounding)

  @property
  def shape(self) -> tuple[int, ...]:
    """(H, W, C)."""
    return self.stored[1:] if self.stored[3] in (1, 3) else (*self.stored[2:], self.stored[1])

  @property
  def quantiser(self) -> str | None:
    """How floats became uint8; None: they were uint8."""
    return self.rounding if self.is_float else None

  @property
  def fingerprint(self) -> None:
    """None: the file is not read as a whole for it."""
    return None

  def __len__(self) -> int:
    return self.stored[0]

  def batches(self, start: int, stop: int, size: int) -> Generator[np.ndarray, None, None]:
    """Yield uint8 [<= size, H, W, C]; what is before `start` is passed over."""
    try:
      with ArrayFile(self.path, self.key) as file:
        file.skip(start)
        for begin in range(start, stop, size):
          rows = file.rows(min(size, stop - begin))
          rows = rows if self.stored[3] in (1, 3) else np.moveaxis(rows, 1, 3)
          yield self._whole_numbers(rows, begin) if self.is_float else rows
    except _BAD as error:
      raise UserError(self.field, self.spec, f"a whole file ({' '.join(str(error).split())[:200]})") from None

  def _whole_numbers(self, rows: np.ndarray, begin: int) -> np.ndarray:
    bad = ~np.isfinite(rows).all(axis=(1, 2, 3))
    if bad.any():
      raise UserError(self.field, self.spec, f"images of numbers: image {begin + int(bad.argmax())} has NaN")
    if np.abs(rows).max() > 1.01:
      raise UserError(self.field, self.spec, f"floats in [-1, 1], or uint8: one is {np.abs(rows).max():g}")
    return np.asarray(QUANTISERS[self.rounding](jnp.asarray(rows, jnp.float32)))


def _key(path: str) -> str:
  if os.path.splitext(path)[1] == ".npy":
    return ""
  with zipfile.ZipFile(path) as archive:
    check_total(archive)
    names = [name.removesuffix(".npy") for name in archive.namelist()]
  if len(set(names)) != len(names):
    raise ValueError("two entries of one name")
  found = next((key for key in KEYS if key in names), None)
  if found is None:
    raise ValueError(f"it holds {', '.join(sorted(names)[:8])}, none of {', '.join(KEYS)}")
  return found
