"""What a zip holds, read in bounded memory: a few kilobytes of it can say that they are petabytes."""

import contextlib
import math
import os
import zipfile
from typing import Any

import numpy as np

from cm_jax.data.sources.files import MAX_FILE
from cm_jax.storage.whole import check_regular

_RATIO = 64  # of what entries are made larger than they are stored; images and samples are 1 to 20
_FREE = 1 << 30  # bytes that all entries together may come to whatever the ratio
_CHUNK = 1 << 24


def check_total(archive: zipfile.ZipFile) -> None:
  """Check that a zip's entries lie in it side by side, and do not come to a thousand times its size.

  Raises:
    ValueError: They overlap, or come to more.
  """
  if archive.fp is None:
    raise ValueError("a closed file")
  stored = sum(entry.compress_size for entry in archive.infolist())
  total = sum(entry.file_size for entry in archive.infolist())
  size = archive.fp.seek(0, 2)
  if stored > size:
    raise ValueError(f"entries of {stored} bytes in a file of {size}")
  if total > _RATIO * size + _FREE:
    raise ValueError(f"{total} bytes in a file of {size}")


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
  """Return the bytes of an image or of labels.

  Raises:
    ValueError: They are more than `MAX_FILE`; and what zipfile raises of a damaged file.
  """
  size = archive.getinfo(name).file_size
  if size > MAX_FILE:
    raise ValueError(f"{size} bytes, more than {MAX_FILE}")
  return archive.read(name)


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Return an array as numpy.savez stores it, read into its place: room is made for what is there.

  Args:
    archive: The .npz file.
    name: Of the array, without .npy.

  Raises:
    ValueError: A header that is none, objects, or another size than the entry's; and what zipfile raises.
  """
  entry = archive.getinfo(f"{name}.npy")
  if entry.file_size > max(MAX_FILE, _RATIO * entry.compress_size):
    raise ValueError(f"{entry.file_size} bytes out of {entry.compress_size}")
  with archive.open(entry) as file:
    shape, by_columns, dtype = _header(file)
    if dtype.hasobject:
      raise ValueError("pickled objects")
    size, left = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if size != left:
      raise ValueError(f"{name} of shape {shape}, {size} bytes, in an entry of {left}")
    flat = np.empty(size, np.uint8)
    for start in range(0, size, _CHUNK):
      part = file.read(min(_CHUNK, size - start))
      flat[start : start + len(part)] = np.frombuffer(part, np.uint8)
    if file.read(1):
      raise ValueError(f"more than {size} bytes")
  return flat.view(dtype).reshape(shape, order="F" if by_columns else "C")


class ArrayFile:
  """An array of an .npz, or an .npy, read row by row from the first on; a context.

  Args:
    path: The file.
    name: Of the array in an .npz, without .npy; "" for an .npy.

  Attributes:
    shape, dtype: Of all of it.

  Raises:
    ValueError: A header that is none, objects, columns before rows, or another size than the file's; and what
      zipfile raises.
  """

  def __init__(self, path: str | os.PathLike, name: str):
    check_regular(path)
    with contextlib.ExitStack() as opened:
      if name:
        archive = opened.enter_context(zipfile.ZipFile(path))
        entry = archive.getinfo(f"{name}.npy")
        if entry.file_size > max(MAX_FILE, _RATIO * entry.compress_size):
          raise ValueError(f"{entry.file_size} bytes out of {entry.compress_size}")
        self._file: Any = opened.enter_context(archive.open(entry))
        size = entry.file_size
      else:
        self._file = opened.enter_context(open(path, "rb"))
        size = os.path.getsize(path)
      self.shape, by_columns, self.dtype = _header(self._file)
      if self.dtype.hasobject or by_columns:
        raise ValueError("pickled objects" if self.dtype.hasobject else "columns before rows")
      stored, left = math.prod(self.shape) * self.dtype.itemsize, size - self._file.tell()
      if stored != left:
        raise ValueError(f"an array of shape {self.shape}, {stored} bytes, in {left}")
      self._opened = opened.pop_all()

  def __enter__(self) -> "ArrayFile":
    return self

  def __exit__(self, *_: object) -> None:
    self._opened.close()

  @property
  def _row(self) -> int:
    return math.prod(self.shape[1:]) * self.dtype.itemsize

  def skip(self, count: int) -> None:
    """Pass over rows."""
    self._file.seek(count * self._row, os.SEEK_CUR)

  def rows(self, count: int) -> np.ndarray:
    """Return the next rows.

    Raises:
      ValueError: The file ends before; and what zipfile raises.
    """
    data = self._file.read(count * self._row)
    if len(data) != count * self._row:
      raise ValueError("the file ends too early")
    return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Return shape, whether it is in Fortran's order, and type, of a .npy file, which stands behind it then."""
  readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  try:
    version = np.lib.format.read_magic(file)
    return readers[version](file)
  except Exception as error:  # of a header that is no Python literal: whatever Python's own parsers raise
    raise ValueError(f"no header of an array ({type(error).__name__})") from error
