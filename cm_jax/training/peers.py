"""The processes of a job keep an eye on each other: one that ends takes the others along, and is named.

Every process says every few seconds that it is there, in the key-value store of JAX's coordination service.
One that fails says why before it ends; one that was killed says nothing any more. The others then end, with
one line, where a collective operation would keep them waiting. Where the first process is killed, the store
is gone with it: jaxlib sees that at once and ends the others, with a line of ours (`lost`).
"""

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from cm_jax import coordination
from cm_jax.errors import UserError
from cm_jax.meetings import LONG, PREFIX, told
from cm_jax.notices import notice

PERIOD = 3.0  # seconds between two signs of life
TIMEOUT = "CM_JAX_PEER_TIMEOUT"  # seconds without one, after which a process counts as dead
# Of a process that ends because another did: killed or stopped, so that the same command goes on; or refused.
STATUS, REFUSED = 75, 1
_DEFAULT = 60.0
# What gloo, NCCL, TPUs' network and JAX's coordination service say where another process is gone.
_COLLECTIVE = re.compile(
  r"gloo|nccl|rccl|megascale|coordination|heartbeat|barrier|preempted|socket closed|broken pipe"
  r"|connection (closed|reset|refused|timed out)|\b(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED)\b",
  re.IGNORECASE,
)


class Watch(threading.Thread):
  """Says that this process is there, and ends it when another is not.

  Args:
    client: Of JAX's coordination service.
    process, processes: Which this is, of how many.
    limit: Seconds without a sign of life.
  """

  def __init__(self, client: Any, process: int, processes: int, limit: float):
    super().__init__(name="peers", daemon=True)
    self._client, self._process, self._processes, self.limit = client, process, processes, limit
    self._ended, self.status = threading.Event(), 0
    self._answered, self._refused = time.monotonic(), ""

  def run(self) -> None:
    """Look every `PERIOD` until `leave`."""
    self._answered = time.monotonic()
    threading.Thread(target=self._see_answers, name="peers-answers", daemon=True).start()
    seen = {number: ("", time.monotonic()) for number in range(self._processes)}
    beats = 0
    while not self._ended.wait(PERIOD):
      beats += 1
      try:
        self._client.key_value_set(f"{PREFIX}/alive/{self._process}", str(beats), allow_overwrite=True)
        alive = _read(self._client, "alive")
        left = _read(self._client, "left")
        self._answered, self._refused = time.monotonic(), ""
      except Exception as error:  # whatever the service raises, it has no type of its own
        self._refused = f" ({_short(error)})"
        continue
      for number in set(range(self._processes)) - {self._process}:
        if left.get(number):
          stopped = _read(self._client, "status").get(number) == str(STATUS)
          self.end(left[number], STATUS if stopped else REFUSED)
        if alive.get(number, "") != seen[number][0]:
          seen[number] = (alive[number], time.monotonic())
        elif number not in left and time.monotonic() - seen[number][1] > self.limit:
          self.end(f"{name_of(self._client, number)} gave no sign of life for {self.limit:.0f} s")

  def _see_answers(self) -> None:
    """End where the store has not answered for so long: of a host that stands still a call to it never
    returns."""
    while not self._ended.wait(PERIOD):
      if time.monotonic() - self._answered > self.limit:
        self.end(f"{_first}, which the others meet at, does not answer{self._refused}")

  def have_come(self) -> bool:
    """Whether every process has said its name."""
    return len(_read(self._client, "name")) == self._processes

  def has_left(self) -> bool:
    """Whether `leave` was called."""
    return self._ended.is_set()

  def leave(self, said: str = "", status: int = 0) -> None:
    """Stop watching, and tell the others: with a line if this process failed, they end then."""
    self._ended.set()
    self.status = status
    line = f"process {self._process} ({socket.gethostname()}) ended: {said}" if said else ""
    try:
      self._client.key_value_set(f"{PREFIX}/status/{self._process}", str(status), allow_overwrite=True)
      self._client.key_value_set(f"{PREFIX}/left/{self._process}", line, allow_overwrite=True)
    except Exception:  # the one that keeps the store is gone already: then all know
      return
    if said:
      self._until_read()

  def _until_read(self) -> None:
    """Wait for the others to read a line, before the store goes with process 0."""
    end = time.monotonic() + 2 * PERIOD
    with contextlib.suppress(Exception):  # as above
      while time.monotonic() < end and len(_read(self._client, "left")) < self._processes:
        time.sleep(PERIOD / 10)

  def end(self, why: str, status: int = STATUS) -> None:
    """End this process with a line, if it has not left."""
    if not self._ended.is_set():
      self.status = status
      self._ended.set()
      _end(why, status)


_watch: Watch | None = None  # of this process
_is_alone = False  # it ends, and the others have been told
_first = "process 0"  # with its host, once that is known


def watch(limit: float) -> None:
  """Begin to watch the others, in a job of several processes.

  Args:
    limit: Seconds without a sign of life after which a process counts as dead.
  """
  global _watch, _first
  number, count = coordination.place()
  if count == 1 or _watch is not None:
    return
  client = coordination.store()
  if client is None:
    notice("this JAX does not show its coordination service: who dies is noticed by JAX alone, later")
    return
  client.key_value_set(f"{PREFIX}/name/{number}", socket.gethostname(), allow_overwrite=True)
  client.blocking_key_value_get(f"{PREFIX}/name/0", LONG)
  _first = name_of(client, 0)  # nobody can say it when it is gone
  _watch = Watch(client, number, count, limit)
  _watch.start()


def leave(said: str = "", status: int = 0) -> None:
  """Stop watching: this process ends, with a status; well or, with a line, badly.

  The others end with the same status if it is `STATUS`, else with `REFUSED`.
  """
  if _watch is not None:
    _watch.leave(said, status)
    if said:
      end_alone()


def end_alone() -> None:
  """Let `exit_alone` end this process: the others have been told, or never came."""
  global _is_alone
  _is_alone = True


def exit_alone(status: int) -> None:
  """End this process with a status if the others have ended because it failed; otherwise do nothing.

  JAX would wait for them at its exit, until it takes them for dead, and say so.
  """
  if _is_alone and coordination.without_waiting():
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def have_come() -> bool:
  """Whether all processes of the job watch each other."""
  return _watch is not None and _watch.have_come()


def watched() -> bool:
  """Whether this process watches others."""
  return _watch is not None


def end_without_first() -> None:
  """End this process, which lost the first one, and with it the store; for `lost.told_by`."""
  if _watch is not None and _watch.has_left():
    os._exit(_watch.status)
  _end(f"{_first}, which the others meet at, is gone")


def wait(error: BaseException) -> None:
  """Wait as long as it takes to see that another process is dead, if an error looks like that; `Watch` then
  ends this one."""
  if _watch is not None and of_another(error):
    time.sleep(_watch.limit + 3 * PERIOD)


def of_another(error: BaseException) -> bool:
  """Whether an error is what a collective operation says where another process is gone.

  >>> of_another(RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [10.0.0.7]:4492"))
  True
  >>> of_another(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes"))
  False
  """
  return _COLLECTIVE.search(str(error)) is not None


def _end(why: str, status: int = STATUS) -> None:
  goes_on = ", the same command goes on" if status == STATUS else ""
  print(f"cm_jax: {why}; this process ends too{goes_on}", file=sys.stderr, flush=True)
  os._exit(status)


def seconds_alone(environment: Mapping[str, str]) -> float:
  """Return how long another process may be silent: CM_JAX_PEER_TIMEOUT, 60 s without.

  Raises:
    UserError: It is no number of at least 10.
  """
  text = environment.get(TIMEOUT, "") or str(_DEFAULT)
  try:
    value = float(text)
  except ValueError:
    value = 0.0
  if not 10 <= value <= 86400:
    raise UserError(TIMEOUT, text, "10 to 86400 seconds")
  return value


def agree(what: str, facts: Mapping[str, Any]) -> None:
  """Check that all processes hold the same facts; each of them calls it.

  Args:
    what: A name for this meeting, used once.
    facts: Of plain JSON, by what errors call them.

  Raises:
    UserError: On every process, if one holds others: which one, and what differs.
  """
  first, *others = (json.loads(text) for text in told(what, json.dumps(dict(facts), sort_keys=True)))
  for number, found in enumerate(others, start=1):
    for name in sorted({*first, *found}):
      if first.get(name) != found.get(name):
        field = f"{name} of {name_of(coordination.store(), number)}"
        differ = [str(n) for n, other in enumerate(others, start=1) if other != first]
        count = f" (processes {', '.join(differ[:8])} differ)" if len(differ) > 1 else ""
        raise UserError(field, found.get(name), f"{first.get(name)}, as process 0 has it{count}")


def name_of(client: Any, number: int) -> str:
  """Return a process's number and host."""
  try:
    return f"process {number} ({client.key_value_try_get(f'{PREFIX}/name/{number}')})"
  except Exception:  # it has not said it yet
    return f"process {number}"


def _read(client: Any, kind: str) -> dict[int, str]:
  found = client.key_value_dir_get(f"{PREFIX}/{kind}/")
  return {int(key.rpartition("/")[2]): value for key, value in found}


def _short(error: Exception) -> str:
  return " ".join(str(error).split())[:120]
