"""Processes that decode images: they leave signals to the run that started them, and end with it."""

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # which go to all processes of a terminal or a job
_EVERY = 1.0  # seconds between two looks at the parent


@contextlib.contextmanager
def starting() -> Iterator[None]:
  """Start processes in a block: signals reach them no more than this one, which answers after the block."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  multiprocessing.resource_tracker.ensure_running()  # a process too; this lets some signals through again
  signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def attend(parent: int, worker: int = 0, workers: int = 1) -> None:
  """Do what a new worker has to: leave signals alone, and end when its parent, even if killed, has.

  Args:
    parent: Number of the process that started it.
    worker, workers: Which of how many; grain says so.
  """
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with, args=(parent,), name="cm_jax-parent", daemon=True).start()


def _end_with(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(_EVERY)
  os._exit(0)
