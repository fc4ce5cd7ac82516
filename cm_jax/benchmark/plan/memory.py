"""How much memory a train step takes on a device, by kind."""

import dataclasses
import math
from typing import Any

import jax

from cm_jax.benchmark.plan.setting import Setting
from cm_jax.training import sharding
from cm_jax.training.averages.track import split_averages

KINDS = ("params", "optimiser", "averages", "teacher", "distance", "gradients", "gathered", "activations")


@dataclasses.dataclass(frozen=True)
class Held:
  """Trees of shapes that lie in a device's memory through a whole step, by kind."""

  trees: dict[str, Any]

  def on_a_device(self, fsdp: int) -> dict[str, int]:
    """Return their bytes on each of `fsdp` devices that share them, and what one gathers to use them."""
    held = {kind: tree_bytes(tree, fsdp) for kind, tree in self.trees.items()}
    return {**held, "gradients": held["params"], "gathered": gathered(self.trees["params"], fsdp)}


def held(setting: Setting) -> Held:
  """Return what a train step holds: of a TrainState its parts, and what is frozen."""
  opt_state, averages = split_averages(setting.state.opt_state)
  return Held(
    {
      "params": setting.state.params,
      "optimiser": (setting.state.step, opt_state),
      "averages": averages,
      "teacher": setting.teacher_params,
      "distance": setting.distance_params,
    }
  )


def tree_bytes(tree: Any, fsdp: int = 1) -> int:
  """Return the bytes of a tree of shapes on one of `fsdp` devices that share its large leaves.

  >>> import jax.numpy as jnp
  >>> tree = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.int32)}
  >>> tree_bytes(tree), tree_bytes(tree, 4)
  (1048588, 262156)
  """
  return sum(_bytes(leaf) // (fsdp if _is_split(leaf, fsdp) else 1) for leaf in jax.tree.leaves(tree))


def gathered(params: Any, fsdp: int) -> int:
  """Return the bytes of the weights that a device has whole for a moment: two of the largest that are split,
  one in use and the next on its way."""
  return sum(sorted(_bytes(leaf) for leaf in jax.tree.leaves(params) if _is_split(leaf, fsdp))[-2:])


def _bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def _is_split(leaf: Any, fsdp: int) -> bool:
  return any(sharding.spec(leaf.shape, fsdp))
