"""What lies in an object store and is read again and again, as a zip or a folder of images: fetched once.

A copy lies in the cache, named by the address and the versions of its objects: another version is another
copy. What is no longer wanted stays in `objects` of the cache's folder until somebody removes it. One process
of a machine fetches, others wait for it; what a stopped one has of a folder the next goes on with.
"""

import collections
import concurrent.futures
import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cm_jax.errors import UserError
from cm_jax.notices import progress_bar
from cm_jax.storage import bucket, whole
from cm_jax.storage.downloads import cache_folder, locked

MAX_OBJECTS = 10_000_000  # of a folder: what is listed lies in memory
_AT_ONCE = 32  # objects that are on their way
_BLOCK = 4096  # bytes that a disk gives at a time
_NAME = 255  # bytes of a name, at most, on the usual file systems
_VERSIONS = ("generation", "ETag", "etag", "mtime")  # what stores call them


class _Object(NamedTuple):
  """An object below a folder: its path from there, its size, what changes with its content."""

  name: str
  size: int
  version: str


def local(path: epath.PathLike, field: str = "path") -> Path:
  """Return a file of this machine with the content of a file: itself, or a copy of what is in a bucket.

  Raises:
    UserError: Names `field`: there is no such object, or it cannot be fetched; the disk is full.
  """
  if not bucket.is_bucket(path):
    return Path(path)
  store, address = bucket.filesystem(path), str(path)
  with _told(field, address, "a file"):
    about = bucket.patiently(path, lambda: store.info(address))
    if about["type"] != "file":
      raise FileNotFoundError(address)
  name = f"{address}\0{_version(about)}\0{about['size']}"
  copy = _place(address, [name])
  with locked(copy):
    if not copy.exists():
      whole.check_room(field, copy, about["size"])
      with _told(field, address, "a file"), whole.writing(copy) as temporary:
        _fetch(store, address, about["size"], temporary)
  return copy


def is_folder(path: epath.PathLike, field: str = "path") -> bool:
  """Say whether there are objects below a path in a bucket.

  Raises:
    UserError: Names `field`: the store does not say it.
  """
  return _asked(path, field, "a folder", lambda store, address: store.isdir(address))


def is_there(path: epath.PathLike, field: str = "path") -> bool:
  """Say whether there is an object of a path in a bucket, or one below it.

  Raises:
    UserError: Names `field`: the store does not say it.
  """
  return _asked(path, field, "a path", lambda store, address: store.exists(address))


def _asked(path: epath.PathLike, field: str, what: str, question: Callable[[Any, str], object]) -> bool:
  store, address = bucket.filesystem(path), str(path)
  with _told(field, address, what):
    return bool(bucket.patiently(path, lambda: question(store, address)))


def local_folder(
  path: epath.PathLike,
  field: str = "path",
  read: Callable[[str], bool] = lambda name: True,
  named: Callable[[str], bool] = lambda name: False,
  below: str = "",
) -> Path:
  """Return a folder of this machine with what is in a folder of a bucket.

  Args:
    path: Of the bucket's folder.
    field: As errors name it.
    read: Whether an object, of a path from there, is fetched.
    named: Whether one that is not is there all the same, empty: where its name alone counts.
    below: A folder in it, the only one that is looked at.

  Raises:
    UserError: Names `field`: no such objects, too many, or a name that no file can have; they cannot be
      fetched, or change meanwhile; the disk has no room.
  """
  address = str(path).rstrip("/")
  counts = lambda name: read(name) or named(name)
  objects = _listed(address, field, below, counts)
  if not objects:
    raise UserError(
      field, f"{address}/{below}".rstrip("/"), "a folder of an object store with such files in it"
    )
  copy = _place(address, map(str, objects))
  with locked(copy):
    if not copy.exists():
      part = copy.with_name(f"{copy.name}.part")
      with _told(field, address, "a folder"):
        _fill(part, address, field, [(one, read(one.name)) for one in objects])
        if _listed(address, field, below, counts) != objects:
          shutil.rmtree(part)
          raise UserError(field, address, "objects that stay as they are while they are fetched")
        for folder, _, _ in os.walk(part / "new"):
          whole.flush(Path(folder))
        os.replace(part / "new", copy)
        whole.flush(copy.parent)
      shutil.rmtree(part, ignore_errors=True)
  return copy


def _listed(address: str, field: str, below: str, counts: Callable[[str], bool]) -> list[_Object]:
  """Return the objects below a folder whose names count, sorted by name."""
  store, root = bucket.filesystem(address), f"{address}/{below}".rstrip("/")
  with _told(field, root, "a folder"):
    found: Mapping[str, Mapping[str, Any]] = bucket.patiently(root, lambda: store.find(root, detail=True))
  if len(found) > MAX_OBJECTS:
    expected = f"at most {MAX_OBJECTS:,} objects; `data prepare` makes one zip of as many images"
    raise UserError(field, f"{root}: {len(found):,} objects", expected)
  start = len(store._strip_protocol(address)) + 1
  objects = []
  for key, about in found.items():
    name = key[start:]
    if about["size"] == 0 and (not name or name.endswith("/")):  # what consoles make for a folder
      continue
    if not _can_be_a_file(name):
      expected = "names that files can have: no part of them empty, . or .., none over 255 bytes"
      raise UserError(field, f"{address}/{name}", expected)
    if counts(name):
      objects.append(_Object(name, int(about["size"]), str(_version(about))))
  names = {one.name for one in objects}
  for one in objects:
    parts = one.name.split("/")
    if twice := names & {"/".join(parts[:depth]) for depth in range(1, len(parts))}:
      raise UserError(
        field, f"{address}/{one.name}", f"no object {min(twice)} too, of which it is in the folder"
      )
  return sorted(objects)


def _can_be_a_file(name: str) -> bool:
  try:
    parts = [part.encode() for part in name.split("/")]
  except UnicodeEncodeError:
    return False
  return all(part not in (b"", b".", b"..") and b"\0" not in part and len(part) <= _NAME for part in parts)


def _fill(part: Path, address: str, field: str, objects: list[tuple[_Object, bool]]) -> None:
  """Bring objects into `new` of a folder, many at a time; those that are there already stay."""
  new, coming = part / "new", part / "coming"
  shutil.rmtree(coming, ignore_errors=True)
  coming.mkdir(parents=True)
  for folder in {(new / one.name).parent for one, _ in objects}:
    folder.mkdir(parents=True, exist_ok=True)
  missing = []
  for one, is_read in objects:
    if not is_read:
      (new / one.name).touch()
    elif not _is_there(new / one.name, one.size):
      missing.append(one)
  whole.check_room(field, part, sum(one.size + _BLOCK for one in missing))
  store = bucket.filesystem(address)

  def bring(numbered: tuple[int, _Object]) -> int:
    number, one = numbered
    temporary = coming / str(number)
    _fetch(store, f"{address}/{one.name}", one.size, temporary)
    whole.flush(temporary)
    os.replace(temporary, new / one.name)
    return one.size

  about = f"fetching {len(missing):,} files of {address}"
  with progress_bar(total=sum(one.size for one in missing), desc=about, unit="B", unit_scale=True) as bar:
    for size in _together(bring, enumerate(missing)):
      bar.update(size)


def _together(function: Callable[[Any], int], items: Iterable[Any]) -> Iterator[int]:
  """Yield function(item) for every item, in order; few are on their way at a time."""
  pending: collections.deque[concurrent.futures.Future[int]] = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "cm_jax-fetch") as pool:
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > 2 * _AT_ONCE:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()


def _is_there(path: Path, size: int) -> bool:
  """Whether a file was brought already: it came into its place whole, and flushed."""
  return path.is_file() and path.stat().st_size == size


def _fetch(store: Any, address: str, size: int, target: Path) -> None:
  """Bring an object into a file."""

  def get() -> None:
    store.get_file(address, str(target))
    if (came := target.stat().st_size) != size:
      raise OSError(errno.EIO, f"{came} of {size} bytes came", address)

  bucket.patiently(address, get)


@contextlib.contextmanager
def _told(field: str, address: str, what: str) -> Iterator[None]:
  """Turn what goes wrong in a block that reads a store into an error about a field."""
  try:
    yield
  except FileNotFoundError:
    raise UserError(field, address, f"{what} that is there") from None
  except OSError as error:
    raise UserError(field, address, f"{what} that can be fetched ({bucket.said(error)})") from error


def _version(about: Mapping[str, Any]) -> object:
  return next((about[key] for key in _VERSIONS if key in about), "")


def _place(address: str, about: Iterable[str]) -> Path:
  """Return where the cache has a copy of what is at an address, as it is now."""
  digest = hashlib.sha256(f"{address}\0".encode())
  for line in about:
    digest.update(f"{line}\0".encode())
  folder = cache_folder() / "objects"
  folder.mkdir(exist_ok=True)
  name = address.rstrip("/").rsplit("/", 1)[-1].encode()[-120:].decode(errors="ignore")
  return folder / f"{digest.hexdigest()[:24]}-{name}"
