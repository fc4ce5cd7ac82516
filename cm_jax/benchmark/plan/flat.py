"""A program as one list of operations: calls inlined, what nothing uses left out."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

Body: TypeAlias = Jaxpr | ClosedJaxpr
_LOOPS = ("scan", "while", "cond")


class Operation(NamedTuple):
  """One equation of the flat program; values are numbers, one each; constants and arguments have one too."""

  equation: Any
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


class Flat(NamedTuple):
  """A program without calls.

  Attributes:
    operations: In the order of the program.
    results: The values it returns.
    size: Bytes by value, of those that operations make.
  """

  operations: list[Operation]
  results: tuple[int, ...]
  size: dict[int, int]


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
  operations: list[Operation] = []
  size: dict[int, int] = {}
  numbers = iter(range(2**62))
  inputs = [next(numbers) for _ in open_jaxpr(program).invars]
  results = [value for value in _inline(open_jaxpr(program), inputs, operations, size, numbers) if value >= 0]
  used, kept = set(results), []
  for operation in reversed(operations):
    if any(value in used for value in operation.outputs):
      used.update(operation.inputs)
      kept.append(operation)
  return Flat(kept[::-1], tuple(results), size)


def _inline(
  jaxpr: Jaxpr,
  inputs: Sequence[int],
  operations: list[Operation],
  size: dict[int, int],
  numbers: Iterator[int],
) -> list[int]:
  """Append the operations of a program and return its results; a constant in a result is -1."""
  values: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
  values |= {constant: next(numbers) for constant in jaxpr.constvars}
  value = lambda variable: -1 if isinstance(variable, Literal) else values[variable]
  for equation in jaxpr.eqns:
    given = [value(variable) for variable in equation.invars]
    if is_call(equation):
      body = open_jaxpr(bodies_of(equation)[0])
      made = _inline(body, given[len(given) - len(body.invars) :], operations, size, numbers)
    else:
      made = [next(numbers) for _ in equation.outvars]
      size.update((number, bytes_of(v.aval)) for number, v in zip(made, equation.outvars, strict=True))
      operations.append(Operation(equation, tuple(v for v in given if v >= 0), tuple(made)))
    values.update(zip(equation.outvars, made, strict=True))
  return [value(variable) for variable in jaxpr.outvars]
