"""A save that fails: Orbax's and tensorstore's threads print it, each for itself; here it is one reason."""

import contextlib
import gc
import logging
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import orbax.checkpoint as ocp

_TRIES, _BREAK = 5, 0.1  # to remove what a failed save left; seconds between
_PACKAGES = ("/orbax/", "/tensorstore/", "/asyncio/")


def silence() -> Callable[[], None]:
  """Leave out what those threads would print from here on, until the function that is returned is called."""
  before = sys.excepthook, threading.excepthook, sys.unraisablehook

  def uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    # tensorstore's threads come here; one of Python's own never does
    if threading.current_thread() is threading.main_thread() or not _is_theirs(where):
      before[0](kind, error, where)

  def in_thread(told: threading.ExceptHookArgs) -> None:
    if not _is_theirs(told.exc_traceback):
      before[1](told)

  def unraisable(told: "sys.UnraisableHookArgs") -> None:
    # a coroutine that is never finished, when it goes
    if not _is_theirs(told.exc_traceback) and "orbax" not in str(type(told.object).__module__):
      before[2](told)

  asyncio = logging.getLogger("asyncio")  # of futures that nobody asks any more
  level, ours = asyncio.level, (uncaught, in_thread, unraisable)
  asyncio.setLevel(logging.CRITICAL)
  sys.excepthook, threading.excepthook, sys.unraisablehook = ours

  def restore() -> None:
    if (sys.excepthook, threading.excepthook, sys.unraisablehook) == ours:
      sys.excepthook, threading.excepthook, sys.unraisablehook = before
      asyncio.setLevel(level)

  return restore


def _is_theirs(where: TracebackType | None) -> bool:
  return any(package in frame.filename for frame in traceback.extract_tb(where) for package in _PACKAGES)


def abandon(manager: ocp.CheckpointManager | None, folder: Path) -> None:
  """Close the manager of checkpoints after a failure, and remove what that left in their folder."""
  with contextlib.suppress(Exception):  # the same again
    if manager is not None:
      manager.close()
  del manager
  gc.collect()  # unfinished coroutines complain when they go, and do so late
  left = list(folder.glob("*.orbax-checkpoint-tmp"))
  for _ in range(_TRIES if left else 0):  # a thread may be writing yet
    for path in left:
      shutil.rmtree(path, ignore_errors=True)
    time.sleep(_BREAK)


def reason(error: BaseException | None) -> str:
  """Return what the system said, out of a chain of errors about errors.

  >>> reason(ValueError("INTERNAL: writing a/b: No space left on device [os_error_code='28'] [source=x]"))
  'No space left on device'
  """
  first = error
  while error is not None:
    if isinstance(error, OSError) and error.strerror:
      return error.strerror
    said = re.search(r": ([^:]*) \[os_error_code=", str(error))
    if said:
      return said.group(1)
    error = error.__cause__ or error.__context__
  return " ".join(f"{type(first).__name__}: {first}".split())[:200]
