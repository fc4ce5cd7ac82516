"""Pairs (t, r) of adjacent noise levels on one trajectory, t noisier:
where the student (t) and the target (r) are evaluated.

A pairing is a frozen dataclass called as `pairs(key, n, step) -> (t [n], r [n])`; `pairs.metrics(step)` says
where its curriculum is, and `pairs.scales` is N(k) where there is a grid.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from cm_jax.diffusion.curriculum import Curriculum
from cm_jax.diffusion.grids import karras_interval, karras_sigma
from cm_jax.diffusion.levels import lognormal_sigma
from cm_jax.errors import UserError
from cm_jax.types import Array, Metrics, NoiseRange, Pairs


@dataclasses.dataclass(frozen=True)
class KarrasPairs:
  """Adjacent points of the Karras grid with N(k) points, uniformly (CM Alg. 2, 3).

  i ~ U{0..N-2}, t = sigma_i, r = sigma_{i+1}.

  Args:
    noise: The grid's range.
    scales: N(k), >= 2.

  Raises:
    UserError: Fewer than two grid points.

  >>> from cm_jax.diffusion.curriculum import constant
  >>> pairs = KarrasPairs(NoiseRange(sigma_min=0.5, sigma_max=2.0), constant(2))
  >>> [level.tolist() for level in pairs.at(jnp.array([0]), 2)]
  [[2.0], [0.5]]
  """

  noise: NoiseRange
  scales: Curriculum

  def __post_init__(self):
    check_scales(self.scales)

  def __call__(self, key: Array, n: int, step: Array) -> tuple[Array, Array]:
    """Draw n pairs at training step `step`."""
    num_scales = self.scales(step)
    return self.at(jax.random.randint(key, (n,), 0, num_scales - 1), num_scales)

  def at(self, index: Array, num_scales: Array | int) -> tuple[Array, Array]:
    """Return the pair of grid interval `index`, 0 the noisiest."""
    return karras_sigma(index, num_scales, self.noise), karras_sigma(index + 1, num_scales, self.noise)

  def metrics(self, step: Array | int) -> Metrics:
    """Return N(k)."""
    return {"num_scales": self.scales(step)}


@dataclasses.dataclass(frozen=True)
class LognormalPairs:
  """Adjacent points of the Karras grid, interval i as probable as the lognormal mass between its ends (iCT
  eq. 10).

  p(i) ~ erf((ln sigma_i - P_mean)/(sqrt2 P_std)) - erf((ln sigma_{i+1} - P_mean)/(sqrt2 P_std)),
  sigma decreasing in i.

  Note:
    Drawn exactly as: a lognormal sigma truncated to [sigma_min, sigma_max], then the interval that holds it.
      No table of
    p(i) is needed, so N may change without recompiling.

  Args:
    noise: The grid's range.
    scales: N(k), >= 2.
    P_mean, P_std: Mean and standard deviation of ln sigma.

  Raises:
    UserError: Fewer than two grid points, or P_std <= 0.

  >>> from cm_jax.diffusion.curriculum import constant
  >>> t, r = LognormalPairs(NoiseRange(), constant(18))(jax.random.key(0), 100, 0)
  >>> bool((t > r).all())
  True
  """

  noise: NoiseRange
  scales: Curriculum
  P_mean: float = -1.1
  P_std: float = 2.0

  def __post_init__(self):
    check_scales(self.scales)
    check_deviation(self.P_std)

  def __call__(self, key: Array, n: int, step: Array) -> tuple[Array, Array]:
    """Draw n pairs at training step `step`."""
    num_scales = self.scales(step)
    low, high = (
      (math.log(s) - self.P_mean) / self.P_std for s in (self.noise.sigma_min, self.noise.sigma_max)
    )
    sigma = lognormal_sigma(jax.random.truncated_normal(key, low, high, (n,)), self.P_mean, self.P_std)
    return KarrasPairs(self.noise, self.scales).at(karras_interval(sigma, num_scales, self.noise), num_scales)

  def metrics(self, step: Array | int) -> Metrics:
    """Return N(k)."""
    return {"num_scales": self.scales(step)}


@dataclasses.dataclass(frozen=True)
class ContinuousPairs:
  """ECT's pairs: ln t ~ N(P_mean, P_std^2), r = max(0, t (1 - n(t) / q^(s+1))) in stage s (ECT section 3.2).

  n(t) = 1 + k sigmoid(-b t) ("sigmoid") or 1 ("constant"). Where r =
  0 the target is the trajectory's clean end.

  Args:
    stages: s(k).
    P_mean, P_std: Of ln t.
    q: Shrinking factor of the gap per stage, > 1.
    k, b: Of n(t).
    adjustment: "sigmoid" or "constant".

  Raises:
    UserError: q <= 1, P_std <= 0, or another adjustment.

  >>> from cm_jax.diffusion.curriculum import constant
  >>> pairs = ContinuousPairs(constant(0), k=0.0)
  >>> pairs.target_time(jnp.array([2.0]), 0).tolist(), pairs.target_time(jnp.array([2.0]), 1).tolist()
  ([1.0], [1.5])
  """

  stages: Curriculum
  P_mean: float = -1.1
  P_std: float = 2.0
  q: float = 2.0
  k: float = 8.0
  b: float = 1.0
  adjustment: str = "sigmoid"
  scales: ClassVar[None] = None  # no grid

  def __post_init__(self):
    if self.adjustment not in ("sigmoid", "constant"):
      raise UserError("adjustment", self.adjustment, "sigmoid or constant")
    if self.q <= 1:
      raise UserError("q", self.q, "a number above 1")
    check_deviation(self.P_std)

  def __call__(self, key: Array, n: int, step: Array) -> tuple[Array, Array]:
    """Draw n pairs at training step `step`."""
    t = lognormal_sigma(jax.random.normal(key, (n,)), self.P_mean, self.P_std)
    return t, self.target_time(t, self.stages(step))

  def target_time(self, t: Array, stage: Array | int) -> Array:
    """Return r [B] for t [B] in a stage (ECT eq. 10)."""
    n = 1 + self.k * jax.nn.sigmoid(-self.b * t) if self.adjustment == "sigmoid" else jnp.ones_like(t)
    ratio = self.q ** -(jnp.asarray(stage, t.dtype) + 1)
    return jnp.maximum(0, t * (1 - n * ratio))

  def metrics(self, step: Array | int) -> Metrics:
    """Return the stage."""
    return {"stage": self.stages(step)}


def check_scales(scales: Curriculum) -> None:
  """Check that a grid always has an interval.

  Raises:
    UserError: Fewer than two points.
  """
  if min(scales.values) < 2:
    raise UserError("scales", min(scales.values), "at least 2 grid points")


def check_deviation(P_std: float) -> None:
  """Check a standard deviation of ln sigma.

  Raises:
    UserError: Not above 0.
  """
  if P_std <= 0:
    raise UserError("P_std", P_std, "a number above 0")


PAIRS: dict[str, Callable[..., Pairs]] = {
  "karras": KarrasPairs,
  "lognormal": LognormalPairs,
  "continuous": ContinuousPairs,
}
