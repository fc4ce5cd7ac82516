"""Files and folders that appear whole or not at all, flushed to the disk: all others write through here.

Paths are those of `etils.epath`: local, `gs://`, `s3://` or any scheme that is registered there. A local file
is written beside its place, flushed (fsync) and renamed; elsewhere it is written to a local temporary file
and copied, since an object store shows a file only once it is complete.
"""

import contextlib
import functools
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bucket

ROOM = "a place that can be written, with room enough"
ABANDONED = 86400.0  # seconds after which what a killed process left beside a file is cleared


def place(path: epath.PathLike) -> epath.Path:
  """Return a path as etils knows it; one that begins with `~` is of the home folder.

  >>> place("gs://bucket/runs").name
  'runs'

  Raises:
    UserError: Its scheme is unknown, or what reaches it is not installed.
  """
  if bucket.is_bucket(path):
    bucket.filesystem(path)
  try:
    return epath.Path(os.path.expanduser(path))
  except KeyError:
    expected = "a path of this machine, or one whose scheme etils.epath knows, such as gs:// or s3://"
    raise UserError("path", str(path), expected) from None


def is_local(path: epath.PathLike) -> bool:
  """Say whether a path is one of this machine's file system.

  >>> is_local("runs/edm"), is_local("gs://bucket/runs/edm")
  (True, False)
  """
  known = place(path)
  return type(known) is type(epath.Path(".")) and "://" not in str(known)


def absolute(path: epath.PathLike) -> epath.Path:
  """Return a path that no change of the working folder moves; one with a scheme is so already."""
  known = place(path)
  return epath.Path(os.path.abspath(known)) if is_local(known) else known


@contextlib.contextmanager
def told_as(field: str, hidden: epath.PathLike | None = None) -> Iterator[None]:
  """Turn what the system says when a place cannot be written, or is full, into an error about `field`.

  Args:
    field: A path, or the name of a field.
    hidden: A place of which the user need not know: errors about what lies in it become errors about `field`.

  >>> with told_as("out"):
  ...   raise OSError(28, "No space left on device")
  Traceback (most recent call last):
  cm_jax.errors.UserError: out = No space left on device: expected a place that can be written, with room
  enough
  """
  try:
    yield
  except OSError as error:
    raise UserError(field, error.strerror or str(error), ROOM) from error
  except UserError as error:
    if hidden is None or not error.field.startswith(str(hidden)):
      raise
    raise error.named(field) from error


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[Path]:
  """Give a local file to write; when the block ends it is at `path`, whole. Folders above it are made.

  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with writing(f"{folder}/a/b.txt") as temporary:
  ...     _ = temporary.write_text("content")
  ...   Path(folder, "a/b.txt").read_text(), os.listdir(f"{folder}/a")
  ('content', ['b.txt'])

  Raises:
    UserError: The place cannot be written, or the disk is full; nothing is left there.
  """
  target = absolute(path)
  with told_as(str(path)):
    if not is_local(target):
      with tempfile.TemporaryDirectory(prefix="cm_jax-") as scratch:
        temporary = Path(scratch) / target.name
        yield temporary
        publish(temporary, target)
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Never the same twice: two processes, of two machines too, may write the same file.
    temporary = Path(target).with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    _clear_abandoned(target, ".tmp")
    try:
      yield temporary
      publish(temporary, target)
    finally:
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: epath.PathLike) -> Iterator[Path]:
  """Give a local file with the content of a file: itself, or a copy of what is elsewhere.

  Raises:
    OSError: It cannot be read, or is no regular file.
  """
  source = absolute(path)
  if is_local(source):
    check_regular(source)
    yield Path(source)
    return
  with tempfile.TemporaryDirectory(prefix="cm_jax-") as scratch:
    copied = Path(scratch) / source.name
    bucket.patiently(source, lambda: _copy(source, copied))
    yield copied


def read(path: epath.PathLike) -> bytes:
  """Return the bytes of a file.

  Raises:
    OSError: It cannot be read, or is no regular file.
  """
  check_regular(path)
  return bucket.patiently(path, place(path).read_bytes)


def check_regular(path: epath.PathLike) -> None:
  """Check that a local path is a regular file, or a link to one.

  Raises:
    OSError: It is not there, or is something else: to open a pipe waits, to read a device never ends.
  """
  if is_local(path) and not stat.S_ISREG(os.stat(path).st_mode):
    raise OSError(f"no regular file: {path}")


def publish(temporary: Path, path: epath.PathLike, last: str = "") -> None:
  """Put a finished local file or folder in its place: flushed and renamed, or copied to what is not local.

  Args:
    temporary: On the file system of `path`, if that is local.
    path: Where nothing is yet, or a file to replace by a file.
    last: Of a folder that is copied, the file that comes after all others: with it the folder is complete.

  Raises:
    OSError: The place cannot be written, or the disk is full.
  """
  target, is_folder = absolute(path), temporary.is_dir()
  found = (file for file in temporary.rglob("*") if file.is_file()) if is_folder else [temporary]
  files = sorted(found, key=lambda file: (file.name == last, file))
  if not is_local(target):
    for file in files:
      there = target / file.relative_to(temporary).as_posix() if is_folder else target
      bucket.patiently(there, functools.partial(_copy, file, there))
    return
  mode = _usual_mode(Path(target).parent)
  for file in files:
    os.chmod(file, mode)  # what libraries write for themselves alone
    flush(file)
  for below in sorted({file.parent for file in files}) if is_folder else ():
    flush(below)
  os.replace(temporary, target)
  flush(Path(target).parent)


def flush(path: Path) -> None:
  """Wait until a local file, or what a folder lists, is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write(path: epath.PathLike, content: bytes | str) -> None:
  """Write a file: all of it or nothing.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  with writing(path) as temporary:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def folder(path: epath.PathLike, last: str = "") -> Iterator[Path]:
  """Give a local folder to fill; when the block ends it is at `path`, instead of what may have been there.

  Args:
    path: Where.
    last: As for `publish`.

  Raises:
    UserError: The place cannot be written, or the disk is full; what was there is left as it was.
  """
  target = absolute(path)
  local = is_local(target)
  with told_as(str(path)):
    if local:
      target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(target).parent if local else None
    if local:
      _clear_abandoned(target, ".new")
    with tempfile.TemporaryDirectory(".new", f".{target.name}.", beside) as scratch:
      new, old = Path(scratch) / "new", Path(scratch) / "old"
      new.mkdir()
      with told_as(str(path), new):
        yield new
      if local and target.exists():
        os.rename(target, old)
      try:
        publish(new, target, last)
      except OSError:
        if old.exists():
          os.rename(old, target)
        raise


def check_writable(field: str, path: epath.PathLike) -> None:
  """Check that something can be made at a path, by making it.

  Raises:
    UserError: The nearest folder above it that exists cannot be written, or the bucket it is in.
  """
  if bucket.is_bucket(path):
    bucket.check_writable(field, path)
  if not is_local(path):
    return
  parent = next(parent for parent in Path(absolute(path)).parents if parent.exists())
  try:
    with tempfile.TemporaryFile(dir=parent):  # what access rights say is not all: root, /proc, quotas
      pass
  except OSError as error:
    raise UserError(field, str(path), f"a place that can be written, unlike {parent}") from error


def check_room(field: str, path: epath.PathLike, size: int) -> None:
  """Check that a local disk has room for a file of so many bytes, before the work that makes it.

  Raises:
    UserError: It has less.
  """
  if not is_local(path):
    return
  disk = shutil.disk_usage(next(parent for parent in Path(absolute(path)).parents if parent.exists()))
  if disk.total and disk.free < size:  # some mounts know of nothing
    raise UserError(field, str(path), f"a place with {size:,} bytes of free space, not {disk.free:,}")


def _usual_mode(folder: Path) -> int:
  """Return the permissions that a new file gets there: the umask itself can only be read by being set, which
  other threads would see."""
  probe = folder / f".{secrets.token_hex(6)}.tmp"
  os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
  try:
    return stat.S_IMODE(probe.stat().st_mode)
  finally:
    probe.unlink()


def _clear_abandoned(target: epath.Path, suffix: str) -> None:
  """Remove what killed processes left beside a file; what another one writes just now is young."""
  for left in Path(target).parent.iterdir():
    with contextlib.suppress(OSError):
      ours = left.name.startswith(f".{target.name}.") and left.name.endswith(suffix)
      if ours and time.time() - left.stat().st_mtime > ABANDONED:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _copy(source: Path | epath.Path, target: Path | epath.Path) -> None:
  if not bucket.is_bucket(target):  # which has no folders: to make one there makes a bucket
    target.parent.mkdir(parents=True, exist_ok=True)
  with source.open("rb") as content, target.open("wb") as copied:
    shutil.copyfileobj(content, copied, 1 << 20)
