"""Decays mu(k) of averages: frozen dataclasses called with the step, whose `gain` is 1 - mu(k)."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from cm_jax.errors import UserError
from cm_jax.training.averages.posthoc import exponent
from cm_jax.types import Array, Decay


@dataclasses.dataclass(frozen=True)
class Constant:
  """mu, the same at every step.

  Args:
    mu: In [0, 1); 0 is no average.

  Raises:
    UserError: mu outside [0, 1).

  >>> Constant(0.75)(10), Constant(0.75).gain(10)
  (0.75, 0.25)
  """

  mu: float

  def __post_init__(self):
    if isinstance(self.mu, bool) or not isinstance(self.mu, (int, float)) or not 0 <= self.mu < 1:
      raise UserError("mu", self.mu, "a number in [0, 1)")

  def __call__(self, step: Array | int) -> float:
    """Return mu."""
    return float(self.mu)

  def gain(self, step: Array | int) -> float:
    """Return 1 - mu."""
    return 1 - float(self.mu)


@dataclasses.dataclass(frozen=True)
class HalfLife:
  """EDM's decay mu(k) = 0.5^(1 / min(h, ramp_up k)), k batches seen before the step (EDM `training_loop.py`).

  Args:
    half_life_steps: h, > 0.
    ramp_up: Keeps the half-life below this fraction of the training so far; 0 for no such bound.

  Raises:
    UserError: A value out of range.

  >>> [round(float(HalfLife(100.0, 0.05)(k)), 4) for k in (0, 20, 10_000)]
  [0.0, 0.5, 0.9931]
  """

  half_life_steps: float
  ramp_up: float = 0.0

  def __post_init__(self):
    if self.half_life_steps <= 0:
      raise UserError("half_life_steps", self.half_life_steps, "a number above 0")
    if self.ramp_up < 0:
      raise UserError("ramp_up", self.ramp_up, "a number >= 0")

  def __call__(self, step: Array | int) -> Array:
    """Return mu(step)."""
    steps = jnp.asarray(self.half_life_steps, jnp.result_type(float))
    if self.ramp_up:
      steps = jnp.minimum(steps, self.ramp_up * jnp.asarray(step, steps.dtype))
    return 0.5 ** (1 / jnp.maximum(steps, 1e-8))

  def gain(self, step: Array | int) -> Array:
    """Return 1 - mu(step)."""
    return 1 - self(step)


@dataclasses.dataclass(frozen=True)
class Power:
  """EDM2's power-function decay mu(k) = (1 - 1/(k+1))^(gamma+1),
  k batches seen before the step (EDM2 eq. 127).

  The average at step t then weighs the params after step j by (j^(gamma+1) - (j-1)^(gamma+1)) / t^(gamma+1),
  j = 1..t; mu is 0 at the first step.

  Args:
    sigma_rel: Relative width of the average, in (0, 0.289); `posthoc.exponent` makes it gamma.

  Raises:
    UserError: A width out of range.

  >>> round(float(Power(0.05)(99)), 4)
  0.8347
  """

  sigma_rel: float

  def __post_init__(self):
    exponent(self.sigma_rel)

  def __call__(self, step: Array | int) -> Array:
    """Return mu(step)."""
    return 1 - self.gain(step)

  def gain(self, step: Array | int) -> Array:
    """Return 1 - mu(step): after a million steps 1e-5, of which 1 - (1 - 1/(k+1))^(gamma+1)
    in float32 keeps two digits."""
    k = jnp.asarray(step, jnp.result_type(float))
    return -jnp.expm1((float(exponent(self.sigma_rel)) + 1) * jnp.log1p(-1 / (k + 1)))


DECAYS: dict[str, Callable[..., Decay]] = {"constant": Constant, "half_life": HalfLife, "power": Power}
