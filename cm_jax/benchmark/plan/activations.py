"""How much memory the intermediate values of a program take at most, from its jaxpr: nothing is compiled."""

import collections
from collections.abc import Iterable

from cm_jax.benchmark.plan.flat import Body, Flat, Operation, bodies_of, flatten

# What XLA never computes on the fly inside of what uses it: its result lies in memory.
_STORED = frozenset(
  [
    "dot_general",
    "conv_general_dilated",
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "argmax",
    "argmin",
    "gather",
    "scatter",
    "scatter-add",
    "scatter_add",
    "sort",
    "scan",
    "while",
    "cond",
    "random_bits",
    "cumsum",
    "cumlogsumexp",
    "cumprod",
    "cummax",
    "select_and_scatter_add",
    "top_k",
  ]
)
_WORTH = (
  1.5  # what is made of more memory than so many times its own is stored, and what it is made of is not
)
_NONE: frozenset[int] = frozenset()


def peak(program: Body, with_results: bool = True) -> int:
  """Return the most bytes of intermediate values at a time, in the order of the program.

  A value is in memory from where it is made to where it is used last. XLA computes elementwise operations
  inside of what uses them, but one that is used twice lies in memory: so it is counted.

  Args:
    program: A jaxpr; its arguments are not counted.
    with_results: Whether what it returns is counted.

  >>> import jax, jax.numpy as jnp
  >>> program = jax.make_jaxpr(lambda x: jnp.sin(x @ x) @ x)(jnp.ones((8, 8)))
  >>> peak(program), peak(program, with_results=False)
  (512, 256)
  """
  return peak_of(flatten(program), with_results)


def peak_of(flat: Flat, with_results: bool = True) -> int:
  """Return the same of a program that is flat already; see `peak`."""
  uses = collections.Counter(value for operation in flat.operations for value in set(operation.inputs))
  uses.update(flat.results)
  roots: dict[int, frozenset[int]] = {}  # of a value, what lies in memory and has to, to make it
  last: dict[int, int] = {}  # of a value in memory, which operation reads it last
  stored: list[tuple[int, Operation]] = []
  for index, operation in enumerate(flat.operations):
    reads = _union(roots.get(value, _NONE) for value in operation.inputs)
    own = sum(flat.size[value] for value in operation.outputs)
    if (
      operation.equation.primitive.name in _STORED
      or any(uses[value] > 1 for value in operation.outputs)
      or sum(flat.size[value] for value in reads) > _WORTH * own
    ):
      stored.append((index, operation))
      last.update(dict.fromkeys(reads, index))
      roots.update((value, frozenset((value,))) for value in operation.outputs)
    else:
      roots.update(dict.fromkeys(operation.outputs, reads))
  results = _union(roots.get(value, _NONE) for value in flat.results)
  free: dict[int, list[int]] = collections.defaultdict(list)
  for value, index in last.items():
    if value not in results:
      free[index].append(value)
  held = most = 0
  for index, operation in stored:
    counted = [value for value in operation.outputs if value in (results if with_results else _NONE)]
    counted += [value for value in operation.outputs if value in last and value not in results]
    held += sum(flat.size[value] for value in counted)
    most = max(most, held + _inside(operation))
    held -= sum(flat.size[value] for value in free[index])
  return most


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
  return frozenset().union(*sets)


def _inside(operation: Operation) -> int:
  """Return what a loop's body takes beside the loop's own results."""
  return max((peak(body) for body in bodies_of(operation.equation)), default=0)
