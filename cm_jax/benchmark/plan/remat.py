"""A gradient as it would be with remat, worked out from the one without: nothing is traced again."""

import itertools
from collections.abc import Callable
from typing import Any

from cm_jax.benchmark.plan.flat import Flat, Operation, used

Keep = Callable[[Any], bool]


def with_remat(flat: Flat, keep: Keep | None = None) -> Flat:
  """Return a flat gradient whose backward pass computes again what it reads of the inside of a block.

  Args:
    flat: Of a gradient that was traced with each block as a call (`networks.remat.alike_once`).
    keep: Says of a primitive whether its results are kept all the same, as a policy of `jax.checkpoint`.
  """
  forward: dict[int, list[Operation]] = {}  # by block
  made_in: dict[int, int] = {}  # of values, in which block
  for operation in flat.operations:
    if operation.block and operation.outputs[0] < flat.backward:
      forward.setdefault(operation.block, []).append(operation)
      made_in.update(dict.fromkeys(operation.outputs, operation.block))
  calls: dict[int, set[int]] = {}  # of a block in the backward pass, those that it is the derivative of
  for operation in flat.operations:
    others = {value for value in operation.inputs if made_in.get(value, operation.block) != operation.block}
    if operation.outputs[0] < flat.backward:  # the result of a block, which is kept
      for value in others:
        del made_in[value]
    elif operation.block and others:
      calls.setdefault(operation.block, set()).update(made_in[value] for value in others)
  numbers = itertools.count(1 + max(flat.size, default=0))
  size, operations = dict(flat.size), []
  # by block in the backward pass, new numbers of what it computes again
  again: dict[int, dict[int, int]] = {}
  for operation in flat.operations:
    block = operation.block
    if block in calls and block not in again:
      new: dict[int, int] = {}
      again[block] = new
      for one in (one for call in sorted(calls[block]) for one in forward[call]):
        if keep is None or not keep(one.equation.primitive):
          new.update((value, next(numbers)) for value in one.outputs)
          size.update((new[value], flat.size[value]) for value in one.outputs)
          operations.append(_renumbered(one, new))
    operations.append(_renumbered(operation, again[block]) if block in calls else operation)
  return flat._replace(operations=used(operations, flat.results), size=size)


def _renumbered(operation: Operation, new: dict[int, int]) -> Operation:
  inputs, outputs = (
    tuple(new.get(value, value) for value in values) for values in (operation.inputs, operation.outputs)
  )
  return operation._replace(inputs=inputs, outputs=outputs)
