"""What the processes of a job say to each other, and what goes wrong on one of them, known to all.

They meet in the key-value store of JAX's coordination service: by no collective operation, which may give up
and needs devices; but where this JAX does not show the store.
"""

import itertools
import json
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from cm_jax import coordination
from cm_jax.errors import UserError, shown

T = TypeVar("T")
PREFIX = "cm_jax"  # of the keys
LONG = 86_400_000  # milliseconds to wait for another, which may copy a checkpoint; a dead one `peers` sees
_numbers = itertools.count()  # the same on every process


def once(what: str) -> str:
  """Return the name of a meeting that is held more than once, numbered."""
  return f"{what}/{next(_numbers)}"


def meet() -> None:
  """Wait until every process of the job is here, however long. Each of them calls it as often."""
  if coordination.place()[1] == 1:
    return
  store, name = coordination.store(), f"{PREFIX}/{once('barrier')}"
  if store is not None:
    store.wait_at_barrier(name, LONG)
    return
  from jax.experimental import multihost_utils

  multihost_utils.sync_global_devices(name)


def told(what: str, text: str) -> list[str]:
  """Return what every process of the job says, the first first; each of them calls it.

  Args:
    what: A name for this meeting, used once.
    text: What this process says.

  >>> told(once("greeting"), "good morning")
  ['good morning']
  """
  number, count = coordination.place()
  if count == 1:
    return [text]
  store, path = coordination.store(), f"{PREFIX}/{what}"
  if store is None:
    return _gathered(text)
  store.key_value_set(f"{path}/{number}", text)
  return [store.blocking_key_value_get(f"{path}/{other}", LONG) for other in range(count)]


def _gathered(text: str) -> list[str]:
  """Return what all processes say, by way of their devices."""
  from jax.experimental import multihost_utils

  mine = np.frombuffer(text.encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.array([mine.size], np.int32)))[:, 0]
  rows = np.asarray(multihost_utils.process_allgather(np.pad(mine, (0, int(sizes.max()) - mine.size))))
  return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def first_error(error: UserError | None) -> UserError | None:
  """Return the error of the first process that has one, on all of them; each calls it."""
  if coordination.place()[1] == 1:
    return error
  text = "" if error is None else json.dumps([shown(str(part), 1000) for part in error.args])
  return next((UserError(*json.loads(said)) for said in told(once("error"), text) if said), None)


def together(action: Callable[[], T]) -> T:
  """Do something on every process of the job; each calls it.

  Raises:
    UserError: On all of them, what it raised on the first that it failed on.

  >>> together(lambda: 7)
  7
  """
  done: list[T] = []
  failed: UserError | None = None
  try:
    done.append(action())
  except UserError as error:
    failed = error
  if (first := first_error(failed)) is not None:
    raise first
  return done[0]
