"""Where a data set is put: checked beforehand, filled in a hidden folder beside it, one run at a time."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cm_jax.errors import UserError
from cm_jax.storage import lock
from cm_jax.storage.whole import check_writable


def check_out(out: str, format: str) -> None:
  """Check that a data set can be written there.

  Raises:
    UserError: Something is there, the name does not go with the format, or the place cannot be written.
  """
  if not out:
    raise UserError("out", "", "what to write: NAME.zip, or a folder with the format array_record")
  path = Path(out).absolute()
  if (format == "zip") != (path.suffix == ".zip"):
    in_a_zip = "a name ending in .zip (or the format array_record)"
    raise UserError("out", out, in_a_zip if format == "zip" else "a folder, not a .zip")
  if os.path.lexists(path):
    raise UserError("out", out, "a path that does not exist yet")
  check_writable("out", path)


KEPT = "made"  # in the hidden folder: images that are ready


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
  """Make a hidden folder beside `out` for the time of a run.

  Of what a stopped run left in it `KEPT` stays, for this one to go on with; it goes with the folder when this
  one ends, unless it is stopped too.

  Raises:
    UserError: Another run is writing there.
  """
  with lock.held(lock.beside(out), "out", str(out)):
    if os.path.lexists(out):  # put there by the one that held it until now
      raise UserError("out", str(out), "a path that does not exist yet")
    part = out.with_name(f".{out.name}.part")
    _clear(part)
    part.mkdir(exist_ok=True)
    try:
      yield part
    except KeyboardInterrupt:
      _clear(part)
      raise
    except BaseException:
      shutil.rmtree(part, ignore_errors=True)
      raise
    shutil.rmtree(part, ignore_errors=True)


def _clear(part: Path) -> None:
  """Remove all of a stopped run but what it kept, which is a folder of its own."""
  if part.is_symlink() or (part.exists() and not part.is_dir()):
    raise UserError("out", str(part), "nothing there: data prepare puts its own folder there")
  for path in part.iterdir() if part.is_dir() else ():
    is_folder = path.is_dir() and not path.is_symlink()
    if path.name == KEPT and is_folder:
      continue
    shutil.rmtree(path) if is_folder else path.unlink()
