"""Which form of a layer is computed where there is a choice: the same function, another speed.

"plain" is what XLA makes of the formula, "cpu" what was measured to be faster there: the weight gradient of
`convolution.py`, and activations after a norm that are computed again in the backward pass. "auto" is "cpu"
where one CPU is all there is; several CPU devices share one batch, which the weight gradient's loop would
gather.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

KERNELS = ("auto", "plain", "cpu")
_CHOSEN = contextvars.ContextVar("kernels", default="auto")


@contextlib.contextmanager
def using(kernels: str) -> Iterator[None]:
  """Choose by name for what is traced inside."""
  token = _CHOSEN.set(kernels)
  try:
    yield
  finally:
    _CHOSEN.reset(token)


def for_cpu() -> bool:
  """Whether layers are to take the forms that suit a CPU."""
  chosen = _CHOSEN.get()
  return chosen == "cpu" or (chosen == "auto" and jax.default_backend() == "cpu" and jax.device_count() == 1)


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
  """Return the function, on a CPU made to store its arguments alone for the backward pass.

  For cheap ones on large arrays: to read what it stores would take longer than to compute it again.
  """
  return jax.checkpoint(function) if for_cpu() else function
