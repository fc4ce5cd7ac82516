"""What Orbax restores into: shapes, dtypes and shardings of every leaf; nothing is taken as it comes."""

from typing import Any

import orbax.checkpoint as ocp


def restore_args(target: Any, partial: bool = False) -> ocp.args.PyTreeRestore:
  """Return Orbax's arguments for a target.

  Args:
    target: From `sharding.abstract`.
    partial: What else the item holds is left out.
  """
  return ocp.args.PyTreeRestore(
    item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
  )
