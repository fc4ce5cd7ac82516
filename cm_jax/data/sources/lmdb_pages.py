"""LMDB's file format, as far as reading every entry of its one table needs it: no package, nothing mapped.

Facts: `mdb.c` of LMDB 0.9 (data format 1), as written on machines of 64 bits, least significant byte first.
A file is pages: two of them describe it, the newer of which counts; a tree of branch and leaf pages is sorted
by key, and a value that is too large for a leaf lies in pages of its own.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cm_jax.errors import UserError

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = 16  # bytes of a page's own
_BRANCH, _LEAF = 0x01, 0x02  # kinds of pages
_BIG, _SUBTABLE, _DUPLICATES = 0x01, 0x02, 0x04  # kinds of entries
_NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32
_EXPECTED = "an LMDB data file of format 1, whole, with one table of single values"


class _Meta(NamedTuple):
  page_size: int
  flags: int
  depth: int
  entries: int
  root: int
  last_page: int
  transaction: int


class Table:
  """The entries of an LMDB file, in the order of their keys.

  Args:
    path: The file, data.mdb.

  Raises:
    UserError: Not such a file, damaged, or with more than one table.
  """

  def __init__(self, path: str):
    self.path = path
    try:
      self._file = os.open(path, os.O_RDONLY)
      self._size = os.fstat(self._file).st_size
    except OSError as error:
      raise UserError(path, f"unreadable: {error.strerror}", "a file that can be read") from error
    try:
      self._meta = self._newest()
      # Where each entry begins: 8 bytes an image
      self.entries = np.fromiter(self._walk(), np.int64)
    except BaseException:
      self.close()
      raise
    if len(self.entries) != self._meta.entries:
      raise self._damaged(f"{len(self.entries)} entries of {self._meta.entries}")

  def __len__(self) -> int:
    return len(self.entries)

  def key(self, index: int) -> bytes:
    """Return the key of an entry."""
    at = int(self.entries[index])
    length = struct.unpack("<H", self._read(at + 6, 2))[0]
    return self._read(at + 8, length)

  def value(self, index: int) -> bytes:
    """Return the value of an entry.

    Raises:
      UserError: The file is damaged.
    """
    at = int(self.entries[index])
    low, high, flags, length = struct.unpack("<HHHH", self._read(at, 8))
    size, begin = low | high << 16, at + 8 + length
    if flags & _BIG:
      (page,) = struct.unpack("<Q", self._read(begin, 8))
      begin = page * self._meta.page_size + _HEADER
    return self._read(begin, size)

  def close(self) -> None:
    """Close the file."""
    if self._file >= 0:
      os.close(self._file)
      self._file = -1

  def __del__(self):
    self.close()

  def _damaged(self, given: str) -> UserError:
    return UserError(self.path, given, _EXPECTED)

  def _read(self, offset: int, size: int) -> bytes:
    if offset < 0 or offset + size > self._size:
      raise self._damaged(f"cut off at {self._size} bytes: there is nothing at {offset}")
    data = os.pread(self._file, size, offset)
    if len(data) != size:
      raise self._damaged(f"cut off: there is nothing at {offset}")
    return data

  def _newest(self) -> _Meta:
    first = self._description(0)
    metas = [first, self._description(first.page_size)]
    return max(metas, key=lambda meta: meta.transaction)

  def _description(self, offset: int) -> _Meta:
    data = self._read(offset, 152)
    magic, version = struct.unpack_from("<II", data, 16)
    if (magic, version) != (_MAGIC, _VERSION):
      raise self._damaged(f"magic number {magic:#x}, format {version}")
    (page_size,) = struct.unpack_from("<I", data, 40)
    _, flags, depth, _, _, _, entries, root = struct.unpack_from("<IHHQQQQQ", data, 88)
    last_page, transaction = struct.unpack_from("<QQ", data, 136)
    if page_size & (page_size - 1) or not 512 <= page_size <= 65_536:
      raise self._damaged(f"pages of {page_size} bytes")
    if flags & _DUPLICATES:
      raise self._damaged("several values for a key")
    if entries * 8 > self._size:
      raise self._damaged(f"{entries} entries in {self._size} bytes")
    return _Meta(page_size, flags, depth, entries, root, last_page, transaction)

  def _walk(self) -> Iterator[int]:
    """Yield where every entry begins, in order."""
    if self._meta.root == _NO_PAGE:
      return
    left, waiting = self._size // self._meta.page_size + 1, [(self._meta.root, 1)]
    taken = 0
    while waiting:
      number, depth = waiting.pop()
      left -= 1
      if left < 0 or depth > _MAX_DEPTH:
        raise self._damaged("a tree that meets itself")
      offset = number * self._meta.page_size
      page = self._read(offset, self._meta.page_size)
      kind, lower = struct.unpack_from("<HH", page, 10)
      count = (lower - _HEADER) // 2
      if not 0 <= count <= (self._meta.page_size - _HEADER) // 2 or not kind & (_BRANCH | _LEAF):
        raise self._damaged(f"page {number} of kind {kind}")
      places = struct.unpack_from(f"<{count}H", page, _HEADER)
      if any(place + 8 > len(page) for place in places):
        raise self._damaged(f"page {number} with an entry beyond its end")
      if kind & _BRANCH:
        for place in reversed(places):
          low, high, top = struct.unpack_from("<HHH", page, place)
          waiting.append((low | high << 16 | top << 32, depth + 1))
      else:
        for place in places:
          low, high, flags, length = struct.unpack_from("<HHHH", page, place)
          if flags & (_SUBTABLE | _DUPLICATES):
            raise self._damaged("more tables than one")
          taken += 8 + length + (low | high << 16)
          if taken > self._size:  # a small file that is many images
            raise self._damaged("entries that share their bytes")
          yield offset + place
