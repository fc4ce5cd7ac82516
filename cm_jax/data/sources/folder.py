"""A folder of PNG and JPEG files, with or without class folders."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable

import numpy as np

from cm_jax.data.sources.classes import UNLABELLED, edm_labels
from cm_jax.data.sources.encoded import EXTENSIONS, EncodedImages
from cm_jax.data.sources.files import check_path, file_stamp, read_file
from cm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FolderSource(EncodedImages):
  """Images of one size below a folder, in the order of their names.

  Labels, the first that applies: EDM's `dataset.json` in the folder; the folder an image lies in, classes
  numbered by name; none (-1).

  Args:
    path: The folder. Hidden files and other kinds of files are passed over.

  Raises:
    UserError: No such folder, no images, images beside class folders or deeper than them, a `dataset.json`
      that does not match.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    _ = self.labels  # lists the files too: what is wrong with them is said here, not at the first batch

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the folder exists."""
    check_path("folder", path, folder=True)

  @functools.cached_property
  def names(self) -> list[str]:
    """The images' paths relative to the folder, with forward slashes, sorted."""
    found = []
    for folder, subfolders, files in os.walk(self.path, followlinks=True):
      subfolders[:] = [name for name in subfolders if not name.startswith(".")]
      below = os.path.relpath(folder, self.path).replace(os.sep, "/")
      prefix = "" if below == "." else below + "/"
      shown = (name for name in files if not name.startswith("."))
      found += [prefix + name for name in shown if name.lower().endswith(EXTENSIONS)]
    if not found:
      expected = f"a folder that holds images ({', '.join(EXTENSIONS)})"
      raise UserError("source", f"folder:{self.path}", expected)
    return sorted(found)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 [N], -1 if unlabelled."""
    described = os.path.join(self.path, "dataset.json")
    if os.path.isfile(described):
      return edm_labels(read_file(described), self.names, described)
    depths = {name.count("/"): name for name in reversed(self.names)}
    if set(depths) == {0}:
      return np.full(len(self.names), UNLABELLED, np.int32)
    if set(depths) != {1}:
      odd = depths[0] if 0 in depths else depths[max(depths)]
      given = f"in none of the class folders of {self.path}"
      raise UserError(os.path.join(self.path, odd), given, "FOLDER/CLASS/IMAGE or FOLDER/IMAGE, not both")
    classes = [name.split("/")[0] for name in self.names]
    return np.unique(classes, return_inverse=True)[1].astype(np.int32)

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""
    return read_file(self.where(index)), int(self.labels[index])

  def where(self, index: int) -> str:
    """Return the file's path."""
    return os.path.join(self.path, self.names[index])

  def stamp(self) -> Iterable[str]:
    """Yield path, size and time of every file, and the labels."""
    yield from map(file_stamp, map(self.where, range(len(self))))
    yield hashlib.sha256(self.labels.tobytes()).hexdigest()
