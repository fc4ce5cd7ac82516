"""A process that fails before it has met the others of its job: it joins them, to say why it ends.

They would wait for it until --join_timeout, or in JAX for its devices.
"""

import contextlib
import os
import threading
import time

from cm_jax.errors import UserError
from cm_jax.training import peers, processes

SECONDS = 60.0  # to wait for the others: who fails at once may be the first to start


def job() -> processes.Job | None:
  """Return the job of several processes that this one is to join and has not; None where there is none."""
  if peers.watched():
    return None
  try:
    found = processes.find(os.environ, processes.tpu_metadata())
  except UserError:  # which may be what it fails by
    return None
  return None if found.processes == 1 else found


def tell(found: processes.Job, line: str, status: int) -> None:
  """Join the others, only to tell them why this process ends; after `SECONDS`, or Ctrl-C, it ends without.

  Args:
    found: From `job`.
    line: Why.
    status: With which.
  """
  joined = threading.Event()

  def say() -> None:
    with contextlib.suppress(UserError, RuntimeError):  # they did not come, or are gone again
      silence = peers.seconds_alone(os.environ)
      # which ends the process by itself, but later than this does
      processes.join(found, processes.seconds_to_join(os.environ) + round(SECONDS), silence)
      peers.watch(silence)
      while not peers.have_come():
        time.sleep(0.1)
      peers.leave(line, status)
    joined.set()

  threading.Thread(target=say, name="peers-early", daemon=True).start()
  with contextlib.suppress(KeyboardInterrupt):
    joined.wait(SECONDS)
  peers.end_alone()
