"""How much memory a train step takes on a device, by kind."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from cm_jax.benchmark.plan.setting import Setting
from cm_jax.training.averages.track import split_averages
from cm_jax.training.layout import Rule, read_rules, specs

KINDS = ("params", "optimiser", "averages", "teacher", "distance", "gradients", "gathered", "activations")


@dataclasses.dataclass(frozen=True)
class Held:
  """Trees of shapes that lie in a device's memory through a whole step, by kind, and the rules by which
  devices share them."""

  trees: dict[str, Any]
  rules: tuple[Rule, ...] = ()

  def on_a_device(self, fsdp: int) -> dict[str, int]:
    """Return their bytes on each of `fsdp` devices that share them, and what one gathers to use them."""
    held = {kind: shared_bytes(tree, fsdp, self.rules, kind) for kind, tree in self.trees.items()}
    return {
      **held,
      "gradients": held["params"],
      "gathered": gathered(self.trees["params"], fsdp, self.rules),
    }


def held(setting: Setting) -> Held:
  """Return what a train step holds: of a TrainState its parts, and what is frozen."""
  opt_state, averages = split_averages(setting.state.opt_state)
  trees = {
    "params": setting.state.params,
    "optimiser": opt_state,
    "averages": averages,
    "teacher": setting.teacher_params,
    "distance": setting.distance_params,
  }
  return Held(trees, read_rules(setting.method.config.mesh.rules))


def tree_bytes(tree: Any) -> int:
  """Return the bytes of a tree of shapes.

  >>> import jax.numpy as jnp
  >>> tree_bytes([jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.int32)])
  1048588
  """
  return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def shared_bytes(tree: Any, fsdp: int, rules: Sequence[Rule] = (), kind: str = "params") -> int:
  """Return the bytes of a tree of shapes on one of `fsdp` devices that share it.

  Args:
    tree: The shapes.
    fsdp: Devices that share one copy.
    rules, kind: Of what is shared, as for `layout.specs`.

  >>> import jax.numpy as jnp
  >>> tree = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.int32)}
  >>> shared_bytes(tree, 4), shared_bytes(tree, 4, [Rule("/w$", "replicate")])
  (262156, 1048588)
  """
  parts = jax.tree.map(
    lambda leaf, spec: _bytes(leaf) // (fsdp if any(spec) else 1), tree, specs(tree, fsdp, rules, kind)
  )
  return sum(jax.tree.leaves(parts))


def gathered(params: Any, fsdp: int, rules: Sequence[Rule] = ()) -> int:
  """Return the bytes of the weights that a device has whole for a moment: two of the largest that are split,
  one in use and the next on its way."""
  whole = jax.tree.map(
    lambda leaf, spec: _bytes(leaf) if any(spec) else 0, params, specs(params, fsdp, rules)
  )
  return sum(sorted(jax.tree.leaves(whole))[-2:])


def _bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize
