"""sha256 of what lies on disk: a file or a folder is what was written, or the difference is found."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from etils import epath

_CHUNK = 1 << 20
_THREADS = 8  # hashing leaves Python's lock, and the files of a checkpoint are many


def of_file(path: epath.PathLike) -> str:
  """Return the sha256 (hex) of a file.

  Raises:
    OSError: It cannot be read.
  """
  digest = hashlib.sha256()
  with epath.Path(path).open("rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


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
  files = sorted(file for file in place.rglob("*") if file.is_file() and file.name not in passed)
  return of_files(place, [file.relative_to(place).as_posix() for file in files])


def differing(folder: epath.PathLike, expected: Mapping[str, str]) -> list[str]:
  """Return the names of the files that are missing, or not what `expected` says; sorted."""
  found = of_files(folder, expected)
  return sorted(name for name, digest in expected.items() if found[name] != digest)
