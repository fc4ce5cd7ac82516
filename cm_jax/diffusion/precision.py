"""How precisely products of float32 are computed, and from which gap between noise levels on that shows.

GPUs and TPUs multiply float32 numbers in fewer bits unless they are told not to: with 10 bits of mantissa
(TensorFloat-32, Ampere GPUs and newer) or 7 (bfloat16, TPUs). CPUs always take all 23.
"""

import contextlib

import jax

from cm_jax.errors import UserError, one_of
from cm_jax.types import PRECISIONS

# Relative error of f(x_t, t) - f(x_r, r) times the gap (t - r)/t, above sigma = 1, measured on a trained iCT
# network against float32 with the operands of every product rounded (the same within 20 % at gaps from 0.28
# to 0.0043), and with its blocks in bfloat16.
ROUNDING = {"highest": 0.0, "tensorfloat32": 0.0033, "bfloat16": 0.024}
BLOCKS_IN_BFLOAT16 = 0.05
# What JAX takes by itself on a backend.
OF_BACKEND = {"cpu": "highest", "gpu": "tensorfloat32", "tpu": "bfloat16"}


def check_precision(value: str) -> None:
  """Check a `matmul_precision`.

  Raises:
    UserError: It is none of `PRECISIONS`.
  """
  if value not in PRECISIONS:
    raise UserError("matmul_precision", value, one_of(PRECISIONS, value))


def computing_in(precision: str) -> contextlib.AbstractContextManager:
  """Return the context in which products of float32 are traced with a precision, and differentiated with it.

  >>> import jax.numpy as jnp
  >>> with computing_in("highest"):
  ...   program = jax.make_jaxpr(jnp.dot)(jnp.ones(2), jnp.ones(2))
  >>> "HIGHEST" in str(program)
  True
  """
  return contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision)


def rounding(dtype: str, precision: str, backend: str) -> float:
  """Return how large rounding is beside f(x_t, t) - f(x_r, r), times (t - r)/t; 0 where it does not show.

  Args:
    dtype: Of the network's blocks.
    precision: One of `PRECISIONS`.
    backend: Where "default" is computed: cpu, gpu or tpu.

  >>> [rounding("float32", precision, "gpu") for precision in ("highest", "default")]
  [0.0, 0.0033]
  """
  if dtype == "bfloat16":
    return BLOCKS_IN_BFLOAT16
  if dtype == "float64":
    return 0.0
  return ROUNDING[OF_BACKEND.get(backend, "highest") if precision == "default" else precision]
