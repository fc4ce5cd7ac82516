"""Distributions of noise levels: called as `levels(key, n) -> sigma [n]`.

`levels.at(draw)` maps the raw draw, a standard normal or a uniform number in [0, 1), to a noise level.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from cm_jax.diffusion.grids import karras_between, vp_sigma
from cm_jax.errors import UserError
from cm_jax.types import Array, NoiseRange


def lognormal_sigma(standard_normal: Array, P_mean: float, P_std: float) -> Array:
  """Return sigma with ln sigma ~ N(P_mean, P_std^2) from standard normal draws (EDM table 1).

  >>> import jax.numpy as jnp
  >>> float(lognormal_sigma(jnp.zeros(()), 0.0, 1.2))
  1.0
  """
  return jnp.exp(P_mean + P_std * standard_normal)


class Levels(Protocol):
  """A distribution of noise levels."""

  def __call__(self, key: Array, n: int, /) -> Array: ...

  def at(self, draw: Array, /) -> Array: ...


class _FromUniform(abc.ABC):
  def __call__(self, key: Array, n: int) -> Array:
    """Draw n noise levels, [n]."""
    return self.at(jax.random.uniform(key, (n,)))

  @abc.abstractmethod
  def at(self, draw: Array) -> Array:
    """Return the levels of uniform draws."""


@dataclasses.dataclass(frozen=True)
class Lognormal:
  """ln sigma ~ N(P_mean, P_std^2): EDM's levels, and those of its successors (EDM table 1,
  iCT section 3.5, sCM section 4.1).

  Args:
    P_mean, P_std: Mean and standard deviation of ln sigma.

  >>> Lognormal(0.0, 1.2).at(jnp.zeros(1)).tolist()
  [1.0]
  """

  P_mean: float = -1.2
  P_std: float = 1.2

  def __post_init__(self):
    if self.P_std <= 0:
      raise UserError("P_std", self.P_std, "a number above 0")

  def __call__(self, key: Array, n: int) -> Array:
    """Draw n noise levels, [n]."""
    return self.at(jax.random.normal(key, (n,)))

  def at(self, draw: Array) -> Array:
    """Return the levels of standard normal draws."""
    return lognormal_sigma(draw, self.P_mean, self.P_std)


@dataclasses.dataclass(frozen=True)
class KarrasLevels(_FromUniform):
  """sigma = u^rho with u uniform between sigma_min^(1/rho) and sigma_max^(1/rho):
  the Karras grid in the limit of many points.

  What continuous-time consistency models are trained with (CM appendix B.3).

  >>> KarrasLevels(NoiseRange(sigma_min=1.0, sigma_max=16.0, rho=2.0)).at(jnp.array([0.0, 0.5])).tolist()
  [1.0, 6.25]
  """

  noise: NoiseRange

  def at(self, draw: Array) -> Array:
    """Return the levels of uniform draws."""
    return karras_between(self.noise.sigma_min, self.noise.sigma_max, draw, self.noise.rho)


@dataclasses.dataclass(frozen=True)
class VPLevels(_FromUniform):
  """sigma(t) of the variance-preserving process at t uniform in [eps, 1] (EDM table 1, column VP).

  sigma(t) = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

  >>> round(VPLevels().at(jnp.zeros(1)).item(), 1)
  152.2
  """

  eps: float = 1e-5
  beta_d: float = 19.9
  beta_min: float = 0.1

  def at(self, draw: Array) -> Array:
    """Return the levels of uniform draws; the draw 0 is the noisiest, as in EDM's code."""
    return vp_sigma(1 + draw * (self.eps - 1), self.beta_d, self.beta_min)


@dataclasses.dataclass(frozen=True)
class VELevels(_FromUniform):
  """ln sigma uniform between ln sigma_min and ln sigma_max (EDM table 1, column VE,
  whose range is 0.02 to 100).

  >>> VELevels(1.0, 4.0).at(jnp.array([0.5])).round(4).tolist()
  [2.0]
  """

  sigma_min: float = 0.02
  sigma_max: float = 100.0

  def at(self, draw: Array) -> Array:
    """Return the levels of uniform draws."""
    return self.sigma_min * (self.sigma_max / self.sigma_min) ** draw


LEVELS: dict[str, Callable[..., Levels]] = {
  "lognormal": Lognormal,
  "karras": KarrasLevels,
  "vp": VPLevels,
  "ve": VELevels,
}
