"""What Orbax restores into: shapes, dtypes and shardings of every leaf; nothing is taken as it comes."""

from typing import Any

import jax
import orbax.checkpoint as ocp


def abstract(tree: Any, shardings: Any) -> Any:
  """Return the shapes and dtypes of a pytree, each with the sharding of its leaf."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings
  )


def restore_args(target: Any, partial: bool = False) -> ocp.args.PyTreeRestore:
  """Return Orbax's arguments for a target.

  Args:
    target: From `abstract`.
    partial: What else the item holds is left out.
  """
  return ocp.args.PyTreeRestore(
    item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
  )
