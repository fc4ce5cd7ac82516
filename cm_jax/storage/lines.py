"""JSON lines: records appended all or none, read without a line cut in half by a kill, dropped on resume."""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bounded, bucket, whole

UPLOADED_EVERY = 30.0  # seconds


def append(path: epath.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
  """Add records to a file, which is made if new: all of them or none, on the disk when it returns.

  A last line that a killed process left unfinished is removed first.

  Raises:
    ValueError: A value that JSON cannot hold, such as NaN; nothing is written.
    UserError: The place cannot be written, or the disk is full, and the file is as it was; it is a link that
      leads out of its folder, which somebody else's run may have: nothing is written there.
  """
  added = _encoded(records)
  place = whole.place(path)
  if not whole.is_local(place):
    before = whole.read(place) if place.exists() else b""
    whole.write(place, before[: before.rfind(b"\n") + 1] + added)
    return
  if os.path.dirname(target := os.path.realpath(place)) != os.path.realpath(place.parent):
    raise UserError(str(path), f"a link to {target}", "a file of that folder")
  with whole.told_as(str(path)):
    place.parent.mkdir(parents=True, exist_ok=True)
    is_new = not place.exists()
    if not is_new:
      whole.check_regular(place)
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)  # two evaluations of one run may end together
      end = file.read().rfind(b"\n") + 1
      file.truncate(end)
      try:
        written = file.write(added)
        if written != len(added):
          raise OSError(f"{written} of {len(added)} bytes fit")
        os.fsync(descriptor)
      except OSError:
        with contextlib.suppress(OSError):
          file.truncate(end)
          if is_new:
            place.unlink()
        raise


class Journal:
  """A file that this process alone appends to. In an object store, where nothing can be appended, its lines
  are kept here too, and it is written anew each `UPLOADED_EVERY` seconds at most, and when it is flushed.

  Args:
    path: The file; read where it is there.
  """

  def __init__(self, path: epath.PathLike):
    self._path, self._uploaded = whole.place(path), time.monotonic()
    self._content: bytes | None = None
    self._is_behind = False

  def append(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records; see `append`.

    Raises:
      ValueError, UserError: As `append`.
    """
    if not bucket.is_bucket(self._path):
      append(self._path, records)
      return
    if self._content is None:
      self._content = b"".join(_whole_lines(self._path)) if self._path.exists() else b""
    self._content += _encoded(records)
    self._is_behind = True
    if time.monotonic() - self._uploaded > UPLOADED_EVERY:
      self.flush()

  def flush(self) -> None:
    """Write what is not there yet.

    Raises:
      UserError: The place cannot be written.
    """
    if self._is_behind and self._content is not None:
      whole.write(self._path, self._content)
      self._uploaded, self._is_behind = time.monotonic(), False


def _encoded(records: Iterable[Mapping[str, Any]]) -> bytes:
  return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def read(path: epath.PathLike) -> list[dict[str, Any]]:
  """Return the records of a file, oldest first; an unfinished last line is none, a missing file holds none.

  Raises:
    UserError: A line that is no JSON object, or a file that cannot be read.
  """
  place = whole.place(path)
  if not place.exists():
    return []
  found: list[dict[str, Any]] = []
  left = bounded.LARGE
  for number, line in enumerate(_whole_lines(place), 1):
    left -= bounded.memory_of(line)
    found.append(bounded.parse_object(line, f"{path}, line {number}", "a JSON object a line", left))
  return found


def by_step(path: epath.PathLike) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
  """Yield every finished line of a file of records with a "step", and its record: None if it is damaged.

  Raises:
    UserError: The file cannot be read.
  """
  place = whole.place(path)
  for line in _whole_lines(place) if place.exists() else ():
    try:
      record = bounded.parse_object(line, str(path), "a record")
      yield line, record if type(record.get("step")) is int else None
    except UserError:
      yield line, None


def drop_after(path: epath.PathLike, step: int) -> int:
  """Remove the records of steps after `step`, and lines that are no records: a run was cut off there.

  Returns:
    How many lines were damaged.
  """
  found = list(by_step(path))
  kept = [line for line, record in found if record is not None and record["step"] <= step]
  if whole.place(path).exists():
    whole.write(path, b"".join(kept))
  return sum(record is None for _, record in found)


def _whole_lines(path: epath.Path) -> Iterator[bytes]:
  """Yield the lines of a file with their ends; not the one that a kill cut in half."""
  try:
    with whole.reading(path) as local, open(local, "rb") as file:
      while (line := file.readline(bounded.SMALL)).endswith(b"\n"):
        yield line
      if len(line) == bounded.SMALL:
        raise OSError(f"a line of more than {bounded.SMALL} bytes")
  except OSError as error:
    raise UserError(str(path), f"unreadable: {error.strerror or error}", "a file of JSON lines") from None


def finite(value: Any) -> Any:
  """Return a value with None in place of every number JSON does not have: null says that there was none.

  >>> finite({"loss": float("nan"), "bins": [1.0, float("inf")]})
  {'loss': None, 'bins': [1.0, None]}
  """
  if isinstance(value, Mapping):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
