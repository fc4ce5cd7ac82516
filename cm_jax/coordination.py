"""JAX's coordination service, which the processes of a job share, and what else of JAX has no public name.

Other modules take nothing private of JAX. Where another version of it lacks something, what rests on that is
done in another way or not at all, as each function says.
"""

import atexit
from typing import Any


def module() -> Any:
  """Return JAX's module of the service; None where it has none of that name."""
  try:
    from jax._src import distributed
  except ImportError:
    return None
  return distributed


def store() -> Any | None:
  """Return the key-value store of the job's processes; None of one process, and of a JAX that does not show
  it."""
  try:
    return module().global_state.client
  except AttributeError:
    return None


def place() -> tuple[int, int]:
  """Return which process this is, of how many; where JAX shows the store without starting the devices.

  >>> place()
  (0, 1)
  """
  if store() is not None:
    state = module().global_state
    return int(state.process_id), int(state.num_processes)
  import jax

  return jax.process_index(), jax.process_count()


def without_waiting() -> bool:
  """Take back what JAX waits for at a process's exit: the others, until it takes them for dead.

  Returns:
    Whether it could be; otherwise JAX waits.
  """
  try:
    from jax._src import api

    atexit.unregister(api.clean_up)
  except (ImportError, AttributeError):
    return False
  return True
