"""Data sets in one file: ADM's npz of arrays and EDM's zip of images. Neither ever runs code of the file."""

import dataclasses
import functools
import os
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from cm_jax.data.sources.classes import (
  Classes,
  class_numbers,
  count_classes,
  described_classes,
  folder_classes,
  unlabelled,
)  # fmt: skip
from cm_jax.data.sources.encoded import EncodedImages
from cm_jax.data.sources.entries import check_total, read_array, read_entry
from cm_jax.data.sources.files import check_path, file_stamp
from cm_jax.data.sources.fingerprints import fingerprint
from cm_jax.data.sources.names import (
  DESCRIPTION,
  EXTENSIONS,
  common_folder,
  is_image,
  is_litter,
  left_out,
  meant,
)  # fmt: skip
from cm_jax.errors import UserError

LABEL_KEYS = ("arr_1", "labels", "label")
_BAD_FILE = (
  *(OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, MemoryError),
  *(zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True)
class NpzSource:
  """ADM's reference batches: `arr_0` uint8 [N, H, W, C], C = 1 or 3; labels [N] in one of `LABEL_KEYS`.

  Args:
    path: The .npz file, read as a whole.

  Raises:
    UserError: No such file, not an npz, arrays of another kind or number.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    _ = self._arrays

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the file exists."""
    check_path("npz", path, folder=False)

  @functools.cached_property
  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    where = os.path.abspath(self.path)  # no name of a field, whatever the file is called
    try:
      with zipfile.ZipFile(self.path) as file:
        names = file.namelist()
        if len(set(names)) != len(names):
          raise ValueError("two entries of one name")
        pixels = read_array(file, "arr_0")
        key = next((key for key in LABEL_KEYS if f"{key}.npy" in names or key in names), None)
        classes = None if key is None else read_array(file, key)
    except (*_BAD_FILE, TypeError) as error:
      expected = "an .npz file with the images in arr_0 (no pickled objects)"
      raise UserError(where, f"unreadable: {error}", expected) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or not pixels.size:
      given = f"arr_0 {pixels.dtype} {list(pixels.shape)}"
      raise UserError(where, given, "arr_0 uint8 [N, H, W, C] with C = 1 or 3")
    return pixels, class_numbers(classes, len(pixels), where, "labels ", "image")

  @property
  def labels(self) -> np.ndarray:
    """int32 [N], -1 if unlabelled."""
    return self._arrays[1]

  @property
  def num_classes(self) -> int:
    """0 if unlabelled."""
    return count_classes(self.labels)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sha256 over the pixels and labels."""
    pixels, labels = self._arrays
    return fingerprint(f"uint8 {pixels.shape[1:]}", map(np.ascontiguousarray, pixels), labels)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {"image": self._arrays[0][index], "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class ZipSource(EncodedImages):
  """A zip of images in the order of their names, as EDM's dataset_tool, `zip -r` and Windows make them.

  Labels, the first that applies: EDM's `dataset.json`; the folder an image lies in, classes numbered by name;
  none (-1). A folder that all of the archive lies in is no class.

  Args:
    path: The .zip file; images are read from it one by one.

  Raises:
    UserError: No such file, not a zip, no images, two entries of one name, labels that do not match.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    _ = self.classes

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the file exists."""
    check_path("zip", path, folder=False)

  @functools.cached_property
  def _file(self) -> zipfile.ZipFile:
    try:
      archive = zipfile.ZipFile(self.path)
      check_total(archive)
      return archive
    except _BAD_FILE as error:
      raise UserError(os.path.abspath(self.path), f"unreadable: {error}", "a zip file") from error

  @functools.cached_property
  def _entries(self) -> dict[str, str]:
    """What every file in the archive is called, and as what it is stored."""
    entries: dict[str, str] = {}
    for entry in self._file.infolist():
      name = meant(entry)
      if is_litter(name) or name.endswith("/"):
        continue
      if name in entries:
        raise UserError(f"{self.path}/{name}", "two entries", "one of each name")
      entries[name] = entry.filename
    return entries

  @functools.cached_property
  def names(self) -> list[str]:
    """The images' names in the archive, with forward slashes, sorted."""
    found = sorted(filter(is_image, self._entries))
    if not found:
      raise UserError("source", f"zip:{self.path}", f"a zip that holds images ({', '.join(EXTENSIONS)})")
    return found

  @functools.cached_property
  def classes(self) -> Classes:
    """The labels, and the classes' names."""
    found = [name for name in self._entries if name.rsplit("/", 1)[-1] == DESCRIPTION]
    if found:
      described = min(found, key=lambda name: name.count("/"))
      root = described.removesuffix(DESCRIPTION)
      inside = [name.removeprefix(root) for name in self.names]
      return described_classes(self._read(described), inside, f"{self.path}/{described}")
    root = common_folder(self.names)
    inside = [name.removeprefix(root) for name in self.names]
    if {name.count("/") for name in inside} == {1}:
      return folder_classes(inside)
    return unlabelled(len(inside))

  @property
  def notes(self) -> list[str]:
    """What was left out."""
    return left_out(self._entries)

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""
    return self._read(self.names[index]), int(self.labels[index])

  def where(self, index: int) -> str:
    """Return the zip's path and the name in it."""
    return f"{self.path}/{self.names[index]}"

  def stamp(self) -> Iterable[str]:
    """Yield path, size and time of the zip."""
    return [file_stamp(self.path)]

  def _read(self, name: str) -> bytes:
    try:
      return read_entry(self._file, self._entries[name])
    except _BAD_FILE as error:
      raise UserError(f"{self.path}/{name}", f"unreadable: {error}", "a whole entry of the zip") from error

  def __getstate__(self) -> dict[str, Any]:
    # An open file does not travel to a worker process; its contents' names and labels do.
    return {key: value for key, value in self.__dict__.items() if key != "_file"}
