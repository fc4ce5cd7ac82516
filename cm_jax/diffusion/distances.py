"""Distances d(a, b) of the consistency objectives: two [B,H,W,C] -> [B]. The batch mean is the objective's.

A distance with `is_norm` is a norm of a - b: of first order where a tends to b,
which decides its limit in continuous time.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from cm_jax.errors import UserError
from cm_jax.types import Array, Distance, Params


def _per_example(values: Array) -> Array:
  return values.reshape(values.shape[0], -1)


class _Weightless:
  def load(self) -> None:
    """Return None: there are no weights."""

  def abstract(self) -> None:
    """Return None: there are no weights."""


@dataclasses.dataclass(frozen=True)
class L1(_Weightless):
  """Mean absolute difference over pixels and channels (CM section 4; jcm and OpenAI: mean, not sum).

  >>> L1()(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), -3.0)).tolist()
  [3.0]
  """

  is_norm: ClassVar[bool] = True

  def __call__(self, a: Array, b: Array, params: Params = None) -> Array:
    """Return d(a, b), [B]."""
    difference = a - b
    # Not jnp.abs, whose gradient at 0 is 1 in JAX: equal images would be pushed apart.
    return jnp.mean(_per_example(difference * jnp.sign(difference)), axis=1)


@dataclasses.dataclass(frozen=True)
class LInf(_Weightless):
  """Largest absolute difference over pixels and channels (jcm `linf`).

  >>> LInf()(jnp.zeros((1, 1, 2, 1)), jnp.array([1.0, -3.0]).reshape(1, 1, 2, 1)).tolist()
  [3.0]
  """

  is_norm: ClassVar[bool] = True

  def __call__(self, a: Array, b: Array, params: Params = None) -> Array:
    """Return d(a, b), [B]."""
    difference = a - b
    # Not jnp.abs: see L1. Where several are largest, each has its part of the gradient.
    return jnp.max(_per_example(difference * jnp.sign(difference)), axis=1)


@dataclasses.dataclass(frozen=True)
class L2(_Weightless):
  """Mean squared difference over pixels and channels (CM section 4).

  Args:
    size: If positive, both images are first resized to size x size:
      bilinear, half-pixel centres, no antialiasing (OpenAI's "l2-32").

  >>> L2()(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), -3.0)).tolist()
  [9.0]
  """

  size: int = 0

  is_norm: ClassVar[bool] = False

  def __call__(self, a: Array, b: Array, params: Params = None) -> Array:
    """Return d(a, b), [B]."""
    if self.size > 0:
      shape = (a.shape[0], self.size, self.size, a.shape[3])
      a, b = (jax.image.resize(image, shape, "bilinear", antialias=False) for image in (a, b))
    return jnp.mean(_per_example(jnp.square(a - b)), axis=1)


@dataclasses.dataclass(frozen=True)
class PseudoHuber(_Weightless):
  """sqrt(||a - b||^2 + c^2) - c with one norm per sample (iCT eq. 7; ECT, where c = 0 gives the plain norm).

  Args:
    c: >= 0. iCT takes 0.00054 sqrt(D) for D values per image.

  Raises:
    UserError: c is negative.

  >>> PseudoHuber(0.0)(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), -3.0)).tolist()
  [6.0]
  """

  c: float = 0.03

  def __post_init__(self):
    if self.c < 0:
      raise UserError("c", self.c, "a number >= 0")

  @property
  def is_norm(self) -> bool:
    """Whether this is the plain norm."""
    return self.c == 0

  def __call__(self, a: Array, b: Array, params: Params = None) -> Array:
    """Return d(a, b), [B]."""
    squared = jnp.sum(_per_example(jnp.square(a - b)), axis=1) + self.c**2
    # With c = 0 the gradient of sqrt at 0 is infinite; the norm's own subgradient there is 0.
    safe = jnp.where(squared > 0, squared, 1.0)
    return jnp.where(squared > 0, jnp.sqrt(safe), 0.0) - self.c


DISTANCES: dict[str, Callable[..., Distance]] = {
  "l1": L1,
  "l2": L2,
  "linf": LInf,
  "pseudo_huber": PseudoHuber,
}
