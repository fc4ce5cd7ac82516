"""The convolution, with a weight gradient that suits CPUs.

XLA:CPU makes the gradient by the weight a convolution whose window is the whole image: it transposes both
operands, inside the loops of whatever made them, and runs at a third of the speed of a matrix product. Here
it is one matrix product for a few images at a time, so that what is copied stays in the cache,

  dW[i, j] = sum_{b,h,v} x[b, h + i - p, v]^T g[b, h, v - j + p],    p the padding,

where x is copied k times along the rows and g k times along the columns, and nothing k^2 times. x is
transposed beforehand, so that the sum is over the last axis of one operand and the first of the other: the
order in which XLA:CPU's matrix product is fast.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cm_jax.types import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")
THIN = 16  # channels under which the matrices are too narrow to win
ROWS = 512  # positions a matrix product should have at least


def plain(x: Array, weight: Array, padding: int, stride: int = 1) -> Array:
  """Convolve x [B,H,W,I] with weight [k,k,I,O], zero padding, as XLA does on every backend.

  A 1x1 kernel is a matrix product.
  """
  if weight.shape[:2] == (1, 1) and padding == 0 and stride == 1:
    return x @ weight[0, 0]
  around = [(padding, padding)] * 2
  return jax.lax.conv_general_dilated(x, weight, (stride, stride), around, dimension_numbers=LAYOUT)


def weight_gradient(x: Array, g: Array, padding: int) -> Array:
  """Return the gradient [k,k,I,O] of sum(g * plain(x, weight, padding)) by the weight.

  Args:
    x: [B,H,W,I].
    g: [B,H',W',O], H' = H + 2 padding - k + 1.
    padding: Zeros on each side.
  """
  (batch, height, width, inputs), (_, rows, columns, outputs) = x.shape, g.shape
  kernel = height + 2 * padding - rows + 1
  together = _together(batch, rows * width)
  # A loop of its own: XLA would transpose in the loop that makes x, at ten times the cost.
  cut = x.reshape(batch // together, together, height * width, inputs)
  x = jax.lax.map(lambda images: jnp.moveaxis(images, 2, 0), cut)
  dtype = jnp.promote_types(jnp.result_type(x, g), jnp.float32)

  def add(carry: tuple[Array, Array, Array], pair: tuple[Array, Array]):
    total, along_rows, along_columns = carry
    images, weights = pair
    # Written in place; what lies outside the image stays 0.
    for i in range(kernel):
      to, start, stop = _overlap(i - padding, height, rows)
      along_rows = _put(along_rows, images[:, :, start:stop], (i * inputs, 0, to, 0))
    for j in range(kernel):
      to, start, stop = _overlap(padding - j, columns, width)
      along_columns = _put(along_columns, weights[:, :, start:stop], (0, 0, to, j * outputs))
    left, right = along_rows.reshape(kernel * inputs, -1), along_columns.reshape(-1, kernel * outputs)
    return (total + jnp.matmul(left, right, preferred_element_type=dtype), along_rows, along_columns), None

  images = x.reshape(-1, inputs, together, height, width)
  weights = g.reshape(-1, together, rows, columns, outputs)
  start = (
    jnp.zeros((kernel * inputs, kernel * outputs), dtype),
    jnp.zeros((kernel * inputs, together, rows, width), x.dtype),
    jnp.zeros((together, rows, width, kernel * outputs), g.dtype),
  )
  (total, _, _), _ = jax.lax.scan(add, start, (images, weights))
  by_window = total.reshape(kernel, inputs, kernel, outputs).transpose(0, 2, 1, 3)
  return by_window.astype(jnp.result_type(x, g))


def _put(into: Array, what: Array, at: tuple[int, ...]) -> Array:
  return jax.lax.dynamic_update_slice(into, what, at)


def _overlap(shift: int, size: int, places: int) -> tuple[int, int, int]:
  """Return (to, start, stop): place n takes element n + shift where there is one, from place `to` on.

  >>> _overlap(-1, 4, 4), _overlap(1, 4, 4), _overlap(0, 4, 2), _overlap(9, 4, 4)
  ((1, 0, 3), (0, 1, 4), (0, 0, 2), (0, 4, 4))
  """
  to = min(max(-shift, 0), places)
  start = min(to + shift, size)
  return to, start, max(min(places + shift, size), start)


def _together(batch: int, positions: int) -> int:
  """Return how many images a matrix product takes: a divisor of the batch, at least `ROWS` positions.

  >>> _together(128, 256), _together(6, 64), _together(7, 16), _together(4, 4096)
  (2, 6, 7, 1)
  """
  divisors = [n for n in range(1, batch + 1) if batch % n == 0]
  return next((n for n in divisors if n * positions >= ROWS), batch)


def _bilinear(name: str, function) -> Primitive:
  """Return a primitive that computes `function(a, b, padding=...)`; its transposes are to be defined."""
  primitive = Primitive(name)
  primitive.def_impl(jax.jit(function, static_argnames="padding"))

  def shape_of(a, b, *, padding: int):
    out = jax.eval_shape(functools.partial(function, padding=padding), *(_like(aval) for aval in (a, b)))
    return jax.core.ShapedArray(out.shape, out.dtype)

  def batched(operands, axes, *, padding: int):
    return jax.vmap(functools.partial(function, padding=padding), axes)(*operands), 0

  primitive.def_abstract_eval(shape_of)
  mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
  batching.primitive_batchers[primitive] = batched
  return primitive


def _like(aval) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _input_gradient(g: Array, weight: Array, x: jax.ShapeDtypeStruct, padding: int) -> Array:
  (gradient,) = jax.linear_transpose(lambda x: plain(x, weight, padding), x)(g)
  return gradient


_convolve = _bilinear("convolve", plain)
_weigh = _bilinear("weight_gradient", weight_gradient)
ad.defbilinear(
  _convolve,
  lambda g, x, weight, *, padding: _input_gradient(g, weight, _like(x.aval), padding),
  lambda g, x, weight, *, padding: _weigh.bind(x, g, padding=padding),
)
ad.defbilinear(
  _weigh,
  lambda weight, x, g, *, padding: _input_gradient(g, weight, _like(x.aval), padding),
  lambda weight, x, g, *, padding: _convolve.bind(x, weight, padding=padding),
)


def convolve(x: Array, weight: Array, padding: int) -> Array:
  """Convolve as `plain` with stride 1; the gradient by the weight is `weight_gradient`.

  Both are primitives, bilinear, each other's transposes: gradients, JVPs and either of the other work.
  """
  return _convolve.bind(x, weight, padding=padding)
