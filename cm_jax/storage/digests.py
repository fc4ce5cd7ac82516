"""sha256 of what lies on disk: a file or a folder is what was written, or the difference is found."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from cm_jax.storage import whole

_CHUNK = 1 << 20
_THREADS = 8  # hashing leaves Python's lock, and the files of a checkpoint are many


def of_file(path: epath.PathLike) -> str:
  """Return the sha256 (hex) of a file.

  Raises:
    OSError: It cannot be read, or is no regular file.
  """
  whole.check_regular(path)
  digest = hashlib.sha256()
  with epath.Path(path).open("rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def of_arrays(tree: Any) -> str:
  """Return the sha256 (hex) of a tree of arrays: of their names, shapes, types and values.

  >>> of_arrays({"a": np.zeros(2), "b": np.ones(2)}) == of_arrays({"b": np.ones(2), "a": np.zeros(2)})
  True
  """
  return of_named(sorted(_leaves(tree), key=lambda leaf: leaf[0]))


def of_named(arrays: Iterable[tuple[str, Any]]) -> str:
  """Return the sha256 (hex) of arrays with names, in their order; one at a time is held.

  >>> of_named([("/a", np.zeros(2))]) == of_arrays({"a": np.zeros(2)})
  True
  """
  digest = hashlib.sha256()
  for name, value in arrays:
    array = np.ascontiguousarray(value)
    digest.update(f"{name} {array.dtype.name} {array.shape}\0".encode())
    digest.update(array.view(np.uint8).data if array.size else b"")
  return digest.hexdigest()


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  if isinstance(tree, Mapping):
    for key, inner in tree.items():
      yield from _leaves(inner, f"{prefix}/{key}")
  else:
    yield prefix, tree


def of_files(folder: epath.PathLike, names: Iterable[str]) -> dict[str, str | None]:
  """Return the sha256 of files of a folder by name ("a/b"); None for what cannot be read."""
  place = epath.Path(folder)

  def one(name: str) -> tuple[str, str | None]:
    try:
      return name, of_file(place / name)
    except OSError:
      return name, None

  with ThreadPoolExecutor(_THREADS) as threads:
    return dict(threads.map(one, names))


def of_folder(folder: epath.PathLike, leave_out: Iterable[str] = ()) -> dict[str, str | None]:
  """Return the sha256 of every file in a folder and below it, by its name relative to it, sorted.

  Args:
    folder: Where.
    leave_out: Names of files, in whatever folder, that do not count.
  """
  place, passed = epath.Path(folder), set(leave_out)
  files = (file.relative_to(place).as_posix() for file in _files(place) if file.name not in passed)
  return of_files(place, sorted(files))


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for entry in folder.iterdir():
    if entry.is_dir():
      yield from _files(entry)
    else:
      yield entry


def differing(folder: epath.PathLike, expected: Mapping[str, str]) -> list[str]:
  """Return the names of the files that are missing, or not what `expected` says; sorted."""
  found = of_files(folder, expected)
  return sorted(name for name, digest in expected.items() if found[name] != digest)
