"""Small arrays of one shape taken together, so that an elementwise update is written once for many of them.

Most arrays of a network are biases and scales of a few hundred numbers: two thirds of DDPM++'s 540, which
hold a five-hundredth of its parameters. Each costs as much to trace, compile and load as a large one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cm_jax.types import Params

SMALL = 2**14  # elements; an array of as many is updated on its own
# Arrays to a group. XLA makes one kernel of all that are equal: cutting one long vector of everything needs
# another for each array, cutting groups of one shape and size as many as there are in a group.
GROUP = 16


class Packing:
  """Lays small arrays of parameters, and of what is like them, end to end in place of the first of a group.

  Args:
    params: The parameters, arrays or shapes.
    apart: A tree of bool: what is not packed whatever its size.
    group: Arrays to a group; those left over are not packed.

  >>> params = {"a": jnp.ones(2), "b": jnp.zeros(2), "c": jnp.ones(2), "w": jnp.ones((128, 128))}
  >>> packing = Packing(params, jax.tree.map(lambda _: False, params), group=2)
  >>> packed = packing.pack({"mu": params, "count": 1})
  >>> jax.tree.map(jnp.shape, packed)
  {'count': (), 'mu': {'a': (4,), 'b': None, 'c': (2,), 'w': (128, 128)}}
  >>> jax.tree.map(jnp.shape, packing.unpack(packed))
  {'count': (), 'mu': {'a': (2,), 'b': (2,), 'c': (2,), 'w': (128, 128)}}
  """

  def __init__(self, params: Params, apart: Any, group: int = GROUP):
    leaves, self._structure = jax.tree.flatten(params)
    alike: dict[Any, list[int]] = {}
    for place, (leaf, is_apart) in enumerate(zip(leaves, jax.tree.leaves(apart), strict=True)):
      if leaf.size < SMALL and not is_apart:
        alike.setdefault((leaf.shape, leaf.dtype), []).append(place)
    self._groups = [
      (shape, places[start : start + group])
      for (shape, _), places in alike.items()
      for start in range(0, len(places) - group + 1, group)
    ]
    hidden = {place for _, places in self._groups for place in places[1:]}
    kept = [None if place in hidden else leaf for place, leaf in enumerate(leaves)]
    self._packed = jax.tree.structure(jax.tree.unflatten(self._structure, kept))

  def pack(self, tree: Any) -> Any:
    """Return a tree in which every part of the parameters' structure is packed."""
    return _replace(tree, self._structure, self._together) if self._groups else tree

  def unpack(self, tree: Any) -> Any:
    """Return what was packed as it was, or what became of it."""
    return _replace(tree, self._packed, self._single) if self._groups else tree

  def _together(self, params: Params) -> Params:
    leaves: list[Any] = jax.tree.leaves(params)
    for _, places in self._groups:
      vector = jnp.concatenate([leaves[place].ravel() for place in places])
      for place in places:
        leaves[place] = None
      leaves[places[0]] = vector
    return jax.tree.unflatten(self._structure, leaves)

  def _single(self, packed: Params) -> Params:
    leaves = jax.tree.leaves(packed, is_leaf=lambda node: node is None)
    for shape, places in self._groups:
      parts = jax.lax.split(leaves[places[0]], [math.prod(shape)] * len(places))
      for place, part in zip(places, parts, strict=True):
        leaves[place] = part.reshape(shape)
    return jax.tree.unflatten(self._structure, leaves)


NOTHING = Packing({}, {})


def _replace(tree: Any, structure: Any, function: Callable[[Any], Any]) -> Any:
  """Apply a function to every part of a tree that has a structure."""
  is_one = lambda node: jax.tree.structure(node) == structure
  return jax.tree.map(lambda node: function(node) if is_one(node) else node, tree, is_leaf=is_one)
