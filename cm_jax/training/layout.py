"""Where each array of a run lives, as data: rules of a pattern and a strategy for parameters, optimiser,
averages and teacher alike.

An array is named by what it belongs to and its place there: params/net/enc/conv/weight, optimiser/1/.../mu/
net/..., averages/ema/net/..., teacher/net/..., distance/features.0.weight. The first rule whose pattern is
found in its name decides; without one large arrays are shared between the devices of "fsdp".
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from cm_jax.errors import UserError, one_of

LARGE_LEAF = 2**16  # elements; smaller leaves are replicated, since gathering them costs more than they weigh
Shape = tuple[int, ...]


class Rule(NamedTuple):
  """How the arrays are laid out whose names a regular expression is found in."""

  pattern: str
  strategy: str


def largest(shape: Shape, fsdp: int) -> int | None:
  """Return the largest dimension that so many devices can share; None where there is none.

  >>> largest((3, 3, 256, 512), 4), largest((7,), 4)
  (3, None)
  """
  divisible = [i for i, size in enumerate(shape) if size and size % fsdp == 0]
  return max(divisible, key=lambda i: shape[i]) if divisible else None


def last(shape: Shape, fsdp: int) -> int | None:
  """Return the last dimension, of a weight its outputs, if so many devices can share it."""
  return len(shape) - 1 if shape and shape[-1] and shape[-1] % fsdp == 0 else None


# (shape, devices) -> the dimension that they share, None for a copy each.
STRATEGIES: dict[str, Callable[[Shape, int], int | None]] = {
  "fsdp": lambda shape, fsdp: largest(shape, fsdp) if int(np.prod(shape)) >= LARGE_LEAF else None,
  "fsdp_small": largest,
  "fsdp_outputs": last,
  "replicate": lambda shape, fsdp: None,
}


def spec(shape: Shape, fsdp: int, strategy: str = "fsdp") -> P:
  """Return how an array is laid out by a strategy: "fsdp" shares large ones along their largest divisible
  dimension, "fsdp_small" those of any size, "fsdp_outputs" along their last; "replicate" gives each device a
  copy.

  >>> [tuple(spec(shape, n)) for shape, n in (((3, 3, 256, 512), 4), ((512,), 4), ((3, 3, 256, 512), 1))]
  [(None, None, None, 'fsdp'), (), ()]
  >>> tuple(spec((512,), 4, "fsdp_small")), tuple(spec((512, 512), 4, "replicate"))
  (('fsdp',), ())
  """
  shared = None if fsdp == 1 else STRATEGIES[strategy](shape, fsdp)
  return P() if shared is None else P(*("fsdp" if i == shared else None for i in range(len(shape))))


def read_rules(rules: Any) -> tuple[Rule, ...]:
  """Return the rules of a config.

  Args:
    rules: Pairs (pattern, strategy).

  Raises:
    UserError: No pairs, no regular expression, a strategy that is not known.

  >>> read_rules([["^teacher/", "replicate"]])
  (Rule(pattern='^teacher/', strategy='replicate'),)
  """
  if not isinstance(rules, (list, tuple)):
    raise UserError("rules", rules, 'pairs, such as (("^teacher/", "replicate"),)')
  found = []
  for rule in rules:
    is_pair = (
      isinstance(rule, (list, tuple)) and len(rule) == 2 and all(isinstance(word, str) for word in rule)
    )
    if not is_pair:
      raise UserError("rules", rule, 'a pair of a pattern and a strategy, such as ("^teacher/", "replicate")')
    pattern, strategy = rule
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError("rules", pattern, f"a regular expression ({error})") from None
    if strategy not in STRATEGIES:
      raise UserError("rules", strategy, one_of(STRATEGIES, strategy))
    found.append(Rule(pattern, strategy))
  return tuple(found)


def names(tree: Any, kind: str) -> Any:
  """Return a tree with the name of each array in its place.

  Args:
    tree: A TrainState where `kind` is "state"; else what is called so: "params", "teacher", "distance".
    kind: What the tree is.

  >>> names({"net": {"w": 1.0}}, "teacher")
  {'net': {'w': 'teacher/net/w'}}
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: _name(path, kind), tree)


def _name(path: Sequence[Any], kind: str) -> str:
  name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
  if kind != "state":
    return f"{kind}/{name}"
  if not name.startswith("opt_state/"):
    return name
  _, is_average, average = name.partition("/averages/")
  return f"averages/{average}" if is_average else name.replace("opt_state/", "optimiser/", 1)


def specs(tree: Any, fsdp: int, rules: Sequence[Rule] = (), kind: str = "params") -> Any:
  """Return how each array of a tree of arrays or shapes is laid out.

  Args:
    tree, kind: As for `names`.
    fsdp: Devices that share one copy.
    rules: The first that fits decides.
  """
  strategy = lambda name: next((rule.strategy for rule in rules if re.search(rule.pattern, name)), "fsdp")
  return jax.tree.map(lambda leaf, name: spec(leaf.shape, fsdp, strategy(name)), tree, names(tree, kind))


def check_rules(rules: Sequence[Rule], trees: Mapping[str, Any]) -> None:
  """Check that every rule is the first to fit some array.

  Args:
    rules: In their order.
    trees: By kind.

  Raises:
    UserError: Names the first that is not, and an array that there is.
  """
  known = [name for kind, tree in trees.items() for name in jax.tree.leaves(names(tree, kind))]
  unused = set(range(len(rules))) - set(_deciding(rules, known))
  for index in sorted(unused):
    pattern = rules[index].pattern
    if any(re.search(pattern, name) for name in known):
      raise UserError("rules", pattern, "a pattern that some array fits which no rule before it fits")
    example = next((name for name in known if name.startswith("params/")), known[0])
    raise UserError("rules", pattern, f"a pattern found in the name of an array, such as {example}")


def _deciding(rules: Sequence[Rule], known: Sequence[str]) -> Iterator[int]:
  for name in known:
    yield from [index for index, rule in enumerate(rules) if re.search(rule.pattern, name)][:1]
