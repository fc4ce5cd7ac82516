"""Noise added before a step of an ODE's sampler (EDM Alg. 2), and the samplers that can."""

import dataclasses
import math

import jax.numpy as jnp

from cm_jax.sampling.grids import rounded
from cm_jax.sampling.walk import GridSampler
from cm_jax.types import Array, Domain, Noise


@dataclasses.dataclass(frozen=True)
class Churn:
  """Noise added before a step (EDM Alg. 2): sigma times 1 + gamma, gamma = min(S_churn/N, 2^0.5 - 1).

  Args:
    S_churn: Total amount; 0 for none.
    S_min, S_max: Where it acts, both ends included; None for no upper end.
    S_noise: Deviation of the noise; a little more than 1 makes up for a denoiser that removes too much.
    domain: A network that knows some levels only gets the nearest to the raised one.

  >>> x, sigma = Churn(S_churn=2.0)(jnp.zeros(()), jnp.ones(()), 10, jnp.ones(()))
  >>> round(x.item(), 4), round(sigma.item(), 4)  # 1.2^2 = 1 + 0.6633^2
  (0.6633, 1.2)
  """

  S_churn: float = 0.0
  S_min: float = 0.0
  S_max: float | None = None
  S_noise: float = 1.0
  domain: Domain | None = None

  def gamma(self, num_steps: int) -> float:
    """Return by how much sigma is raised, where it is."""
    return min(self.S_churn / num_steps, math.sqrt(2) - 1)

  @property
  def top(self) -> float:
    """S_max as a number."""
    return math.inf if self.S_max is None else self.S_max

  def __call__(self, x: Array, sigma: Array, num_steps: int, z: Array) -> tuple[Array, Array]:
    """Return x and sigma (a scalar) raised, with the draw z."""
    inside = (sigma >= self.S_min) & (sigma <= self.top)
    gamma = jnp.where(inside, self.gamma(num_steps), 0.0)
    if self.domain is None or not self.domain.levels:
      return x + sigma * jnp.sqrt(gamma * (2 + gamma)) * self.S_noise * z, sigma * (1 + gamma)
    raised = rounded(sigma * (1 + gamma), self.domain)
    added = jnp.sqrt(jnp.maximum((raised - sigma) * (raised + sigma), 0.0))
    return x + added * self.S_noise * z, raised


@dataclasses.dataclass(frozen=True)
class ChurnSampler(GridSampler):
  """A sampler along a grid that can add noise before its steps; fields as in `GridSampler` and `Churn`."""

  S_churn: float = 0.0
  S_min: float = 0.0
  S_max: float | None = None
  S_noise: float = 1.0

  def raised(self, x: Array, i: Array | int, t: Array, noise: Noise) -> tuple[Array, Array]:
    """Return x and its level t (a scalar) before step i; draw i + 1 is its noise."""
    if not self.S_churn:
      return x, t
    churn = Churn(self.S_churn, self.S_min, self.S_max, self.S_noise, self.domain)
    return churn(x, t, self.num_steps, noise(i + 1, x.shape))
