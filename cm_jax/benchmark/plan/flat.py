"""A program as one list of operations: calls inlined, what nothing uses left out."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from cm_jax.networks.remat import BLOCK

Body: TypeAlias = Jaxpr | ClosedJaxpr
BACKWARD = "the_backward_pass"  # the name of a call with which it begins
_LOOPS = ("scan", "while", "cond")


class Operation(NamedTuple):
  """One equation of the flat program; values are numbers, one each; constants and arguments have one too.

  `block` is the number of the call of a network's block that it belongs to; 0 for none.
  """

  equation: Any
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  block: int = 0


class Flat(NamedTuple):
  """A program without calls.

  Attributes:
    operations: In the order of the program.
    results: The values it returns.
    size: Bytes by value, of those that operations make.
    backward: The first number of the backward pass, where the program has a call of `BACKWARD`.
  """

  operations: list[Operation]
  results: tuple[int, ...]
  size: dict[int, int]
  backward: int


def open_jaxpr(program: Body) -> Jaxpr:
  """Return a program without its constants."""
  return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def bodies_of(equation: Any) -> list[Body]:
  """Return the programs that an equation runs: of jit, remat, custom derivatives, a loop's body.

  What is run only when something is differentiated is a function and no program yet.
  """
  return [
    value
    for key, value in equation.params.items()
    if isinstance(value, (Jaxpr, ClosedJaxpr)) and key != "cond_jaxpr"
  ]


def is_call(equation: Any) -> bool:
  """Whether an equation is its body, run once."""
  return equation.primitive.name not in _LOOPS and len(bodies_of(equation)) == 1


def bytes_of(aval: Any) -> int:
  """Return how much memory a value takes; a key of random numbers is two of 32 bits.

  >>> import jax
  >>> bytes_of(jax.ShapeDtypeStruct((2, 3), "float32"))
  24
  """
  return math.prod(aval.shape) * aval.dtype.itemsize


def flatten(program: Body) -> Flat:
  """Return a program with its calls inlined and without what no result depends on."""
  inlined = _Inlined([], {}, itertools.count(), itertools.count(1))
  inputs = [next(inlined.numbers) for _ in open_jaxpr(program).invars]
  results = tuple(value for value in inlined.add(open_jaxpr(program), inputs) if value >= 0)
  return Flat(used(inlined.operations, results), results, inlined.size, inlined.backward)


def used(operations: Sequence[Operation], results: Iterable[int]) -> list[Operation]:
  """Return the operations that results depend on."""
  wanted, found = set(results), []
  for operation in reversed(operations):
    if any(value in wanted for value in operation.outputs):
      wanted.update(operation.inputs)
      found.append(operation)
  return found[::-1]


@dataclasses.dataclass
class _Inlined:
  """A flat program in the making; fields as in `Flat`, and the next numbers of values and of blocks."""

  operations: list[Operation]
  size: dict[int, int]
  numbers: Iterator[int]
  blocks: Iterator[int]
  backward: int = 2**62

  def add(self, jaxpr: Jaxpr, inputs: Sequence[int], block: int = 0) -> list[int]:
    """Append the operations of a program and return its results; a constant in a result is -1."""
    values: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {constant: next(self.numbers) for constant in jaxpr.constvars}
    value = lambda variable: -1 if isinstance(variable, Literal) else values[variable]
    for equation in jaxpr.eqns:
      given = [value(variable) for variable in equation.invars]
      if is_call(equation):
        body, name = open_jaxpr(bodies_of(equation)[0]), equation.params.get("name")
        if name == BACKWARD:
          self.backward = next(self.numbers)
        inside = next(self.blocks) if name == BLOCK and not block else block
        made = self.add(body, given[len(given) - len(body.invars) :], inside)
      else:
        made = [next(self.numbers) for _ in equation.outvars]
        self.size.update((number, bytes_of(v.aval)) for number, v in zip(made, equation.outvars, strict=True))
        read = tuple(number for number in given if number >= 0)
        self.operations.append(Operation(equation, read, tuple(made), block))
      values.update(zip(equation.outvars, made, strict=True))
    return [value(variable) for variable in jaxpr.outvars]
