"""Files that sources read: whether they are there, their bytes, and what changes when they do."""

import os

from cm_jax.errors import UserError
from cm_jax.storage import bounded


def check_path(scheme: str, path: str, *, folder: bool) -> None:
  """Raise UserError unless `path` is an existing folder (or file)."""
  kind = "folder" if folder else "file"
  if not path or not (os.path.isdir if folder else os.path.isfile)(path):
    raise UserError("source", f"{scheme}:{path}", f"{scheme}:PATH of an existing {kind}")


MAX_FILE = 1 << 28  # bytes of an image or of labels, also of what a zip makes of few


def read_file(path: str) -> bytes:
  """Return a file's bytes.

  Raises:
    UserError: It cannot be read, is larger than `MAX_FILE` or no regular file.
  """
  try:
    return bounded.content(path, MAX_FILE)
  except OSError as error:
    given = f"unreadable: {error.strerror or error}"
    raise UserError(path, given, f"a file that can be read, of at most {MAX_FILE >> 20} MB") from error


def file_stamp(path: str | os.PathLike) -> str:
  """Return a file's path, size and time of change as one line."""
  status = os.stat(path)
  return f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
