"""Where a data set is put: checked beforehand, filled in a hidden folder, one run at a time.

The folder is beside a place of this machine; for one in an object store it is in the cache's folder.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bucket, lock, whole
from cm_jax.storage.downloads import cache_folder

_LAST = "dataset_info.json"  # of a set of tfds, which is none without it


def check_out(out: str, format: str, source: str) -> None:
  """Check that a data set can be written there.

  Args:
    out: The place.
    format: zip or array_record.
    source: What it is made of.

  Raises:
    UserError: Something is there, the name does not go with the format, it is in the folder whose images are
      read, or the place cannot be written.
  """
  if not out:
    raise UserError("out", "", "what to write: NAME.zip, or a folder with the format array_record")
  path = whole.absolute(out)
  if (format == "zip") != (path.suffix == ".zip"):
    in_a_zip = "a name ending in .zip (or the format array_record)"
    raise UserError("out", out, in_a_zip if format == "zip" else "a folder, not a .zip")
  _check_free(path, out)
  whole.check_writable("out", path)
  scheme, _, folder = source.partition(":")
  if scheme != "folder":
    return
  is_here = not bucket.is_bucket(out) and not bucket.is_bucket(folder)
  resolved = (lambda name: Path(name).resolve()) if is_here else whole.absolute
  if resolved(out).is_relative_to(resolved(folder)):
    raise UserError("out", out, f"a place outside {folder}, whose images it would be among")


def _check_free(path: epath.Path, out: str) -> None:
  if path.exists() if bucket.is_bucket(path) else os.path.lexists(path):
    raise UserError("out", out, "a path that does not exist yet")


KEPT = "made"  # in the hidden folder: images that are ready


@contextlib.contextmanager
def filling(out: str) -> Iterator[Path]:
  """Make a hidden folder for the time of a run that fills it, to `put` what it made at `out`.

  Of what a stopped run left in it `KEPT` stays, for this one to go on with; it goes with the folder when this
  one ends, unless it is stopped too.

  Raises:
    UserError: Another run is writing there.
  """
  path = whole.absolute(out)
  with lock.held(lock.beside(path), "out", out):
    _check_free(path, out)  # put there by the one that held it until now
    part = _hidden(path)
    _clear(part)
    part.mkdir(parents=True, exist_ok=True)
    try:
      yield part
    except KeyboardInterrupt:
      _clear(part)
      raise
    except BaseException:
      shutil.rmtree(part, ignore_errors=True)
      raise
    shutil.rmtree(part, ignore_errors=True)


def put(made: Path, grid: Path, out: str) -> None:
  """Put a data set in its place, and the picture of some of its images beside it.

  Raises:
    OSError: The place cannot be written; the data set is not there then.
  """
  path = whole.absolute(out)
  whole.publish(grid, path.parent / f"{path.name}.png")
  try:
    whole.publish(made, path, _LAST)
  except BaseException:
    if bucket.is_bucket(path):  # where a part of it may be
      with contextlib.suppress(OSError):
        bucket.filesystem(path).rm(str(path), recursive=True)
    raise


def size(out: str) -> int:
  """Return the bytes of what is at a place: a file, or all files below a folder."""
  if bucket.is_bucket(out):
    return int(bucket.filesystem(out).du(out))
  path = Path(out)
  found = [path] if path.is_file() else path.rglob("*")
  return sum(file.stat().st_size for file in found if file.is_file())


def _hidden(path: epath.Path) -> Path:
  if not bucket.is_bucket(path):
    return Path(path).with_name(f".{path.name}.part")
  return cache_folder() / "prepare" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.part"


def _clear(part: Path) -> None:
  """Remove all of a stopped run but what it kept, which is a folder of its own."""
  if part.is_symlink() or (part.exists() and not part.is_dir()):
    raise UserError("out", str(part), "nothing there: data prepare puts its own folder there")
  for path in part.iterdir() if part.is_dir() else ():
    is_folder = path.is_dir() and not path.is_symlink()
    if path.name == KEPT and is_folder:
      continue
    shutil.rmtree(path) if is_folder else path.unlink()
