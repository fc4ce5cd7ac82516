"""Pairs (t, r) of adjacent noise levels on one trajectory, t noisier: where the student (t) and the target (r) are evaluated.

A pairing is a frozen dataclass called as `pairs(key, n, step) -> (t [n], r [n])`; `pairs.metrics(step)` says where its curriculum is.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cm_jax.diffusion.curriculum import Curriculum
from cm_jax.diffusion.noise import karras_sigma, lognormal_sigma
from cm_jax.errors import UserError
from cm_jax.types import Array, Metrics, NoiseRange


@dataclasses.dataclass(frozen=True)
class KarrasPairs:
  """Adjacent points of the Karras grid with N(k) points, uniformly: i ~ U{0..N-2}, t = sigma_i, r = sigma_{i+1} (CM Alg. 2, 3).

  Args:
    noise: The grid's range.
    scales: N(k), >= 2.
  """

  noise: NoiseRange
  scales: Curriculum

  def __post_init__(self):
    if min(self.scales.values) < 2:
      raise UserError("config.objective.pairs.scales", min(self.scales.values), "at least 2 grid points")

  def __call__(self, key: Array, n: int, step: Array) -> tuple[Array, Array]:
    """Draw n pairs at training step `step`."""
    num_scales = self.scales(step)
    return self.at(jax.random.randint(key, (n,), 0, num_scales - 1), num_scales)

  def at(self, index: Array, num_scales: Array | int) -> tuple[Array, Array]:
    """Return the pair of grid interval `index`, 0 the noisiest."""
    return karras_sigma(index, num_scales, self.noise), karras_sigma(index + 1, num_scales, self.noise)

  def metrics(self, step: Array) -> Metrics:
    """Return N(k)."""
    return {"num_scales": self.scales(step)}


@dataclasses.dataclass(frozen=True)
class LognormalPairs(KarrasPairs):
  """Adjacent points of the Karras grid, interval i with probability proportional to the lognormal mass between its ends (iCT eq. 10).

  p(i) ~ erf((ln sigma_i - P_mean)/(sqrt2 P_std)) - erf((ln sigma_{i+1} - P_mean)/(sqrt2 P_std)) with sigma decreasing in i.

  Note:
    Drawn exactly as: a lognormal sigma truncated to [sigma_min, sigma_max], then the interval that holds it. No table of p(i) is
    needed, so N may change without recompiling.

  Args:
    P_mean, P_std: Mean and standard deviation of ln sigma.
  """

  P_mean: float = -1.1
  P_std: float = 2.0

  def __call__(self, key: Array, n: int, step: Array) -> tuple[Array, Array]:
    """Draw n pairs at training step `step`."""
    num_scales = self.scales(step)
    low, high = ((math.log(s) - self.P_mean) / self.P_std for s in (self.noise.sigma_min, self.noise.sigma_max))
    sigma = lognormal_sigma(jax.random.truncated_normal(key, low, high, (n,)), self.P_mean, self.P_std)
    root = lambda s: s ** (1 / self.noise.rho)
    top, bottom = root(self.noise.sigma_max), root(self.noise.sigma_min)
    index = jnp.floor((top - root(sigma)) / (top - bottom) * (num_scales - 1)).astype(jnp.int32)
    return self.at(jnp.clip(index, 0, num_scales - 2), num_scales)


@dataclasses.dataclass(frozen=True)
class ContinuousPairs:
  """ECT's pairs: ln t ~ N(P_mean, P_std^2), r = max(0, t (1 - n(t) / q^(s+1))) in stage s (ECT section 3.2).

  n(t) = 1 + k sigmoid(-b t) ("sigmoid") or 1 ("constant"). Where r = 0 the target is the trajectory's clean end.

  Args:
    stages: s(k).
    P_mean, P_std: Of ln t.
    q: Shrinking factor of the gap per stage, > 1.
    k, b: Of n(t).
    adjustment: "sigmoid" or "constant".
  """

  stages: Curriculum
  P_mean: float = -1.1
  P_std: float = 2.0
  q: float = 2.0
  k: float = 8.0
  b: float = 1.0
  adjustment: str = "sigmoid"

  def __post_init__(self):
    if self.adjustment not in ("sigmoid", "constant"):
      raise UserError("config.objective.pairs.adjustment", self.adjustment, "sigmoid or constant")
    if self.q <= 1:
      raise UserError("config.objective.pairs.q", self.q, "a number above 1")

  def __call__(self, key: Array, n: int, step: Array) -> tuple[Array, Array]:
    """Draw n pairs at training step `step`."""
    t = lognormal_sigma(jax.random.normal(key, (n,)), self.P_mean, self.P_std)
    return t, self.target_time(t, self.stages(step))

  def target_time(self, t: Array, stage: Array | int) -> Array:
    """Return r [B] for t [B] in a stage (ECT eq. 10)."""
    n = 1 + self.k * jax.nn.sigmoid(-self.b * t) if self.adjustment == "sigmoid" else jnp.ones_like(t)
    ratio = self.q ** -(jnp.asarray(stage, t.dtype) + 1)
    return jnp.maximum(0, t * (1 - n * ratio))

  def metrics(self, step: Array) -> Metrics:
    """Return the stage."""
    return {"stage": self.stages(step)}


PAIRS: dict[str, Callable] = {"karras": KarrasPairs, "lognormal": LognormalPairs, "continuous": ContinuousPairs}
