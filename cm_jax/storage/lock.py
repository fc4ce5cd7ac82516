"""One writer at a time: a small file says who holds a place, and is refreshed for as long as it does.

A lock is left behind by what is killed. It is void at once where its process can be seen to be gone (the
same machine, another start time), or where it is of an earlier start of the job that asks; else a minute
after it was last refreshed. In a bucket the object is made only if there is none (`If-None-Match: *`), and a
void one is deleted first: whose is there a second later holds it.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bucket, whole
from cm_jax.storage.holder import Holder, started

REFRESH, STALE = 10.0, 60.0  # seconds between signs of life, and after the last of them
SETTLED = 1.0  # seconds until what two wrote at once to an object store is the same for both


class Lock:
  """A place that this process alone writes to, from `acquire` to `release`.

  Args:
    path: The lock's file.
    field, value: What it guards, as errors name it.
  """

  def __init__(self, path: epath.PathLike, field: str, value: object):
    self._path, self._field, self._value = whole.absolute(path), field, value
    self._local = whole.is_local(self._path)
    self._me = Holder.this()
    self._new: list[Path] = []  # folders made for it
    self._lost = False
    self._done = threading.Event()
    self._refreshing = threading.Thread(target=self._refresh, name="cm_jax-lock", daemon=True)

  def acquire(self) -> None:
    """Take the place; folders above the file are made.

    Raises:
      UserError: Another process holds it, or it cannot be written.
    """
    try:
      if self._local:
        parents = [Path(parent) for parent in Path(self._path).parents]
        self._new = [parent for parent in parents if not parent.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
      while not self._written():
        holder = self._holder()
        if holder is not None and not self._is_void(holder):
          self._refuse(holder)
        if holder is not None and self._local:
          self._clear(holder)
    except OSError as error:
      self._remove_folders()
      raise UserError(self._field, self._value, f"{whole.ROOM} ({error.strerror or error})") from error
    except BaseException:
      self._remove_folders()
      raise
    self._refreshing.start()

  def release(self) -> None:
    """Give the place back, and remove the folders that were made for the lock if nothing came into them."""
    self._done.set()
    if self._refreshing.is_alive():
      self._refreshing.join(STALE)
    with contextlib.suppress(OSError):
      if self._is_mine():
        self._path.unlink(missing_ok=True)
    self._remove_folders()

  def check(self) -> None:
    """Look whether the place is still held: a process that slept may have been taken for gone.

    Raises:
      UserError: It is not.
    """
    with contextlib.suppress(OSError):
      self._lost = self._lost or not self._is_mine()
    if self._lost:
      expected = f"{self._path.name} in it as this process wrote it; another took over, or it was removed"
      raise UserError(self._field, self._value, expected)

  def _written(self) -> bool:
    """Write the file if it is not there; elsewhere over one that is void."""
    content = json.dumps(dataclasses.asdict(self._me)).encode()
    if not self._local:
      holder = self._holder()
      if holder is not None and not self._is_void(holder):
        return False
      if not bucket.is_bucket(self._path):  # another store: who wrote last holds it
        whole.write(self._path, content)
      else:
        if holder is not None:
          self._path.unlink(missing_ok=True)
        if not bucket.create(self._path, content):
          return False
      time.sleep(SETTLED)
      return self._is_mine()
    try:
      descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
      return False
    try:
      with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    except OSError:
      self._path.unlink(missing_ok=True)
      raise
    return True

  def _holder(self) -> Holder | None:
    """Return whom the file names, None if there is no file; waits a moment for one that is being written."""
    for wait in (0.0, 0.2, 0.8):
      time.sleep(wait)
      holder = Holder.read(self._path)
      if holder is None or holder.pid:
        break
    return holder

  def _is_void(self, holder: Holder) -> bool:
    if holder.pid and holder.machine == self._me.machine:  # its process would be seen from here
      return started(holder.pid) != holder.started
    if self._age(holder) > STALE:
      return True
    if not holder.job or holder.job != self._me.job:
      return False
    return holder.restart < self._me.restart or self._is_silent(holder)

  def _is_silent(self, holder: Holder) -> bool:
    """Wait whether a lock of this very job is refreshed: it is not if the job was requeued."""
    before = self._sign(holder)
    for _ in range(25):
      time.sleep(REFRESH / 10)
      now = self._holder()
      if now is None or now.token != holder.token:
        return now is None
      if self._sign(now) != before:
        return False
    return True

  def _sign(self, holder: Holder) -> float:
    return os.stat(self._path).st_mtime if self._local else holder.at

  def _age(self, holder: Holder) -> float:
    """Return the seconds since a lock was refreshed, by the file system's clock, not by two machines'."""
    if not self._local:
      return time.time() - holder.at
    probe = self._beside()
    try:
      probe.touch()
      return probe.stat().st_mtime - self._sign(holder)
    finally:
      probe.unlink(missing_ok=True)

  def _clear(self, holder: Holder) -> None:
    """Remove a void lock, and none that came into its place: who removes a file has that very file locked."""
    with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
      with contextlib.suppress(OSError):  # a file system that locks no files
        fcntl.flock(file, fcntl.LOCK_EX)
      now = Holder.read(self._path)
      still = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
      if still and now is not None and now.token == holder.token:
        os.unlink(self._path)

  def _beside(self) -> Path:
    return Path(f"{self._path}.{self._me.token}")

  def _refuse(self, holder: Holder) -> None:
    here, rest = holder.machine == self._me.machine, STALE - self._age(holder)
    gone = "" if here else f" (if that is gone: try again in {max(rest, 1):.0f} s)"
    raise UserError(self._field, self._value, f"a place that no other process writes to: {holder} does{gone}")

  def _is_mine(self) -> bool:
    holder = Holder.read(self._path)
    return holder is not None and holder.token == self._me.token

  def _refresh(self) -> None:
    while not self._done.wait(REFRESH):
      with contextlib.suppress(OSError, UserError):  # a disk that does not answer for a while
        if not self._is_mine():
          self._lost = True
          return
        if self._local:
          os.utime(self._path)  # needs no room, as a new file would on a full disk
        else:
          now: dict[str, Any] = {**dataclasses.asdict(self._me), "at": time.time()}
          whole.write(self._path, json.dumps(now))

  def _remove_folders(self) -> None:
    for folder in self._new:
      with contextlib.suppress(OSError):
        folder.rmdir()


def beside(path: epath.PathLike) -> epath.Path:
  """Return where the lock of a file or folder lies that is yet to come.

  >>> beside("gs://bucket/x.npz").name
  '.x.npz.lock'
  """
  target = whole.absolute(path)
  return target.parent / f".{target.name}.lock"


@contextlib.contextmanager
def held(path: epath.PathLike, field: str, value: object) -> Iterator[Lock]:
  """Hold a place for the length of a block; see `Lock`.

  Raises:
    UserError: Another process holds it, or it cannot be written.
  """
  lock = Lock(path, field, value)
  lock.acquire()
  try:
    yield lock
  finally:
    lock.release()
