"""Floating point operations of a program, counted over its jaxpr by XLA's own rules: nothing is compiled."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cm_jax.benchmark.plan.flat import Body, bodies_of, open_jaxpr

# What XLA counts apart, as transcendental, and what only moves numbers or makes them.
_TRANSCENDENTAL = frozenset(
  [
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "atan2",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "pow",
    "sqrt",
    "rsqrt",
    "cbrt",
    "erf",
    "erf_inv",
    "erfc",
    "lgamma",
    "digamma",
  ]
)
_MOVES = frozenset(
  [
    "reshape",
    "broadcast_in_dim",
    "transpose",
    "squeeze",
    "expand_dims",
    "slice",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "concatenate",
    "pad",
    "rev",
    "iota",
    "copy",
    "copy_p",
    "stop_gradient",
    "bitcast_convert_type",
    "split",
    "sharding_constraint",
    "optimization_barrier",
    "name",
    "random_bits",
    "random_seed",
    "random_split",
    "random_fold_in",
    "random_wrap",
    "random_unwrap",
    "device_put",
    "create_token",
    "full",
    "empty",
  ]
)
_REDUCTIONS = frozenset(
  [
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
  ]
)


def count(program: Body) -> int:
  """Return the floating point operations of a program: two a multiply-add, one an elementwise operation.

  As XLA's `cost_analysis`: products with a convolution's padding are none; exp, sqrt, tanh and their like are
  left out, and so are random bits. Unlike there, a scan's body counts as often as it runs. Of branches the
  longest counts.

  >>> import jax, jax.numpy as jnp
  >>> count(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 5))))
  60
  >>> count(jax.make_jaxpr(lambda x: jnp.exp(x) + 1)(jnp.ones(7)))
  7
  """
  return sum(of_equation(equation) for equation in open_jaxpr(program).eqns)


def of_equation(equation: Any) -> int:
  """Return the floating point operations of one equation of a jaxpr."""
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    return _product(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "scan":
    return parameters["length"] * count(parameters["jaxpr"])
  if name == "cond":
    return max(count(branch) for branch in parameters["branches"])
  bodies = bodies_of(equation)
  if bodies:
    return sum(count(body) for body in bodies)
  if name in _REDUCTIONS:
    return _elements(equation.invars[:1]) - _elements(equation.outvars[:1])
  if name.startswith("reduce_window"):
    return _elements(equation.outvars) * math.prod(parameters["window_dimensions"])
  return 0 if name in _TRANSCENDENTAL or name in _MOVES else _elements(equation.outvars[:1])


def _elements(variables: Sequence[Any]) -> int:
  return sum(math.prod(variable.aval.shape) for variable in variables)


def _product(equation: Any) -> int:
  (contracting, _), _ = equation.params["dimension_numbers"]
  left, out = equation.invars[0].aval, equation.outvars[0].aval
  return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracting)


def _convolution(equation: Any) -> int:
  p, (left, right), out = equation.params, equation.invars, equation.outvars[0].aval
  numbers = p["dimension_numbers"]
  spatial = zip(
    (left.aval.shape[axis] for axis in numbers.lhs_spec[2:]),
    (right.aval.shape[axis] for axis in numbers.rhs_spec[2:]),
    (out.shape[axis] for axis in numbers.out_spec[2:]),
    p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"], strict=True,
  )  # fmt: skip
  pairs = math.prod(_pairs(*axis) for axis in spatial)
  batch, features = (out.shape[axis] for axis in numbers.out_spec[:2])
  return 2 * pairs * right.aval.shape[numbers.rhs_spec[1]] * features * batch


def _pairs(size: int, window: int, out: int, stride: int, padding: Any, dilation: int, spread: int) -> int:
  """Return how many pairs (output position, window position) of one axis fall on a number of the input,
  not on padding or a gap of dilation."""
  places = np.arange(out)[:, None] * stride + np.arange(window)[None] * spread - padding[0]
  inside = (places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)
  return int(inside.sum())
