"""Orbax's manager of the checkpoints in one folder, as this package has it."""

from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from cm_jax.training.copies import Copies
from cm_jax.training.on_disk import OnDisk


class Manager(ocp.CheckpointManager):
  """Leaves it to the training loop to ask whether a SIGTERM ends the job (`sharding.preempted`).

  Each question counts, and has to come from all processes with one number.
  """

  def reached_preemption(self, step: int) -> bool:
    """Say no."""
    return False


def open_manager(place: OnDisk | Copies, policy: Any, written: Callable[[], None]) -> Manager:
  """Return the manager of the folder of a place that is here.

  Args:
    place: Of the steps. Where the folder is this process's own no other has a part in what is done in it.
    policy: Which steps are kept.
    written: Called in the background when a step is complete but for its name.
  """
  shared, mine = ocp.options.MultiprocessingOptions(), jax.process_index()
  alone = ocp.options.MultiprocessingOptions(mine, {mine}, f"process_{mine}")
  processes = alone if place.is_own else shared
  trees = ("state", "averages", "teacher")
  handlers: dict[str, Any] = {
    name: ocp.PyTreeCheckpointHandler(multiprocessing_options=processes) for name in trees
  }
  handlers["extra"] = ocp.JsonCheckpointHandler(multiprocessing_options=processes)
  options = ocp.CheckpointManagerOptions(
    create=not place.is_own,
    multiprocessing_options=processes,
    enable_async_checkpointing=True,
    preservation_policy=place.kept_here(policy),
    # A folder that cannot be made is an error at once; in the background it is a wait of five minutes.
    async_options=ocp.AsyncOptions(
      create_directories_asynchronously=False, post_finalization_callback=written
    ),
  )
  return Manager(place.here, options=options, item_handlers=handlers)
