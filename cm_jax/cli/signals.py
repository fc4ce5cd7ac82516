"""Signals: SIGTERM (a preempted machine, scancel, docker stop), SIGHUP and Ctrl-C end a command in good
order.

Anywhere the first one ends the work at once, as an exception does: what is half-written goes, what is
finished stays, one line is printed. Training asks for more: it goes on to the end of the step, and is saved.
A second Ctrl-C ends the process as it stands.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# 75 is sysexits.h's "try again"; 130 what a shell makes of Ctrl-C
STATUS = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}


class Stopped(KeyboardInterrupt):
  """A signal ended the work.

  Args:
    number: Which.
    said: The line for the user.
    is_agreed: All processes of the job end here.
  """

  def __init__(self, number: int, said: str = "", is_agreed: bool = False):
    name = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    super().__init__(said or f"{name}; the same command goes on")
    self.status, self.is_agreed = STATUS[signal.Signals(number)], is_agreed


class Boundary:
  """Where signals wait for the end of a step, from `begin` on."""

  def __init__(self) -> None:
    self._begun = self._by_jax = False
    self._received: int | None = None

  def begin(self, by_jax: bool = False) -> None:
    """From now on a signal is noted, not raised.

    Args:
      by_jax: JAX takes SIGTERM, and finds the step after which all processes of the job end; so the other
        signals become one.
    """
    self._begun, self._by_jax = True, by_jax

  def reached(self) -> bool:
    """Whether the work should end here."""
    return self._received is not None

  def end(self, said: str) -> Stopped:
    """Return what to raise at the end, with a line of what was done of it.

    Without a signal of our own it was SIGTERM, which jax.distributed takes.
    """
    return Stopped(self._received or signal.SIGTERM, said, is_agreed=True)

  def received(self, number: int) -> None:
    """Take a signal.

    Raises:
      Stopped: Nothing waits for a boundary.
    """
    self._received = number
    if not self._begun:
      raise Stopped(number)
    if self._by_jax:
      os.kill(os.getpid(), signal.SIGTERM)


_boundary = Boundary()  # signals are the process's, so are these
_count = 0


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Answer signals for the length of a block. What is ignored already (nohup) stays so."""
  global _count
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _count = 0
  before = {number: signal.getsignal(number) for number in STATUS}
  answer()
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def answer() -> None:
  """Answer signals from here on; again where a library took them, as jax.distributed takes SIGTERM."""
  for number in STATUS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, _answer)


def _answer(number: int, _: FrameType | None) -> None:
  global _count
  _count += 1
  if _count == 1:
    _boundary.received(number)
  elif number == signal.SIGINT:
    # Nothing is waited for: what is not finished on the disk does not count, as after a kill.
    os.write(2, b"\ninterrupted again: ended at once\n")  # not sys.stderr, which may be in mid-line
    os._exit(STATUS[signal.SIGINT])


@contextlib.contextmanager
def at_a_boundary() -> Iterator[Boundary]:
  """Give the boundary for which signals wait, once it has begun."""
  global _boundary
  _boundary = Boundary()
  try:
    yield _boundary
  finally:
    _boundary = Boundary()
