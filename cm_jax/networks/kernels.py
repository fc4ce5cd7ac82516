"""Which form of a layer is computed where there is a choice: the same function, another speed.

"plain" is what XLA makes of the formula, "cpu" what was measured to be faster there: the weight gradient of
`convolution.py`, and activations after a norm that are computed again in the backward pass. "auto" is "cpu"
where one CPU is all there is, for arrays of at least `LARGE` bytes; several CPU devices share one batch,
which the weight gradient's loop would gather.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

from cm_jax.types import Array

KERNELS = ("auto", "plain", "cpu")
# What a core's own cache holds no more of: the whole step of a 16 px network of 64 images is 1.5 times faster
# for the CPU forms, that of an 8 px network, whose largest array is 0.8 MB, 1.4 times slower.
LARGE = 1 << 20
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


def pays(x: Array) -> bool:
  """Whether a layer of x is to take the form that suits a CPU: always by the choice "cpu", else if large."""
  return for_cpu() and (_CHOSEN.get() == "cpu" or x.size * x.dtype.itemsize >= LARGE)


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
  """Return the function of (x, ...), on a CPU made to store its arguments alone for the backward pass.

  For cheap ones on large arrays: to read what it stores would take longer than to compute it again.
  """
  again = jax.checkpoint(function)
  return lambda x, *others: again(x, *others) if pays(x) else function(x, *others)
