"""Files that sources read: whether they are there, their bytes, and what changes when they do."""

import os

from cm_jax.errors import UserError


def check_path(scheme: str, path: str, *, folder: bool) -> None:
  """Raise UserError unless `path` is an existing folder (or file)."""
  kind = "folder" if folder else "file"
  if not path or not (os.path.isdir if folder else os.path.isfile)(path):
    raise UserError("source", f"{scheme}:{path}", f"{scheme}:PATH of an existing {kind}")


def read_file(path: str) -> bytes:
  """Return a file's bytes.

  Raises:
    UserError: It cannot be read.
  """
  try:
    with open(path, "rb") as file:
      return file.read()
  except OSError as error:
    raise UserError(path, f"unreadable: {error.strerror}", "a file that can be read") from error


def file_stamp(path: str | os.PathLike) -> str:
  """Return a file's path, size and time of change as one line."""
  status = os.stat(path)
  return f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n"
