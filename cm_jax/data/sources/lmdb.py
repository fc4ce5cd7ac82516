"""LSUN's archives as they are downloaded: images in an LMDB file, read without unpacking."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from typing import Any

from cm_jax.data.sources.classes import Classes, unlabelled
from cm_jax.data.sources.encoded import EncodedImages
from cm_jax.data.sources.files import file_stamp
from cm_jax.data.sources.lmdb_pages import Table
from cm_jax.errors import UserError

DATA = "data.mdb"


@dataclasses.dataclass(frozen=True)
class LmdbSource(EncodedImages):
  """An LMDB file whose values are images, in the order of the keys; unlabelled.

  LSUN's are, one category and split each (bedroom_train_lmdb.zip, unpacked): WebP files, which have any sizes
  and need a crop.

  Args:
    path: The folder that holds data.mdb, or that file.

  Raises:
    UserError: No such file, damaged, empty, or with more than one table.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    if not len(self._table):
      raise UserError("source", f"lmdb:{self.path}", "an LMDB file that holds images")

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the file exists."""
    if not path or not os.path.isfile(_file(path)):
      raise UserError("source", f"lmdb:{path}", f"lmdb:PATH of an existing folder with {DATA}, as LSUN's")

  @functools.cached_property
  def _table(self) -> Table:
    return Table(_file(self.path))

  @functools.cached_property
  def classes(self) -> Classes:
    """None."""
    return unlabelled(len(self._table))

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""
    return self._table.value(index), int(self.labels[index])

  def where(self, index: int) -> str:
    """Return the file's path and the image's key."""
    return f"{_file(self.path)}/{self._table.key(index).decode(errors='backslashreplace')}"

  def stamp(self) -> Iterable[str]:
    """Yield path, size and time of the file."""
    return [file_stamp(_file(self.path))]

  def __getstate__(self) -> dict[str, Any]:
    # An open file does not travel to a worker process.
    return {key: value for key, value in self.__dict__.items() if key != "_table"}


def _file(path: str) -> str:
  return os.path.join(path, DATA) if os.path.isdir(path) else path
