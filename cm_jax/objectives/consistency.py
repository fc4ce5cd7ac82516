"""The consistency objective in discrete time: one loss of which CD, CT, iCT and ECT are configs.

  L = E[lambda(t, r) d(f_theta(x_t, t), sg f_theta-(x_r, r))],   x_t = x + t z,   x_r = solver(drift, x_t,
  t, r)

CD and CT differ in the drift only: a teacher's, or the unbiased Monte Carlo estimate (CM Alg. 2 and 3).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cm_jax.diffusion.drifts import DriftSource
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.solvers import Solver
from cm_jax.diffusion.weights import Weight
from cm_jax.objectives.targets import StopGradient, Target
from cm_jax.types import (
  Array,
  Batch,
  Condition,
  Context,
  Decay,
  Distance,
  Metrics,
  Needs,
  NoiseRange,
  Objective,
  ObjectiveOutput,
  Pairs,
  Params,
)  # fmt: skip


class ConsistencyDraws(NamedTuple):
  """t > r >= 0, noise levels [B]; z [B,H,W,C] standard normal; one dropout key for student and target."""

  t: Array
  r: Array
  z: Array
  key: Array


@dataclasses.dataclass(frozen=True)
class Consistency(Objective):
  """Discrete consistency distillation and training (CM eq. 7, 10; iCT; ECT).

  Args:
    noise: For sigma_data, which some weights take.
    pairs: (key, n, step) -> (t, r).
    drift: Of `DRIFTS`: a teacher's (distillation) or the Monte Carlo estimate (training in isolation).
    solver: One ODE step from t to r. The Monte Carlo drift's trajectories are straight, so every solver lands
      on x + r z; Euler does so with the fewest rounding errors (Heun divides by r: 3e-4 off at t = 2, r =
      1e-3 in float32).
    distance: d(a, b) -> [B].
    weight: lambda(t, r, sigma_data) -> [B].
    target: theta-, one of `TARGETS`. An average itself lives in the optax state.

  Note:
    Where r = 0 the target network is not consulted: f(x, 0) = x, so the target is x_r itself, the
    trajectory's clean end. That is how ECT enforces the boundary condition.

  Raises:
    UserError: A target that follows N(k), of pairs without a grid.
  """

  trains: ClassVar[str] = "consistency"

  noise: NoiseRange
  pairs: Pairs
  drift: DriftSource
  solver: Solver
  distance: Distance
  weight: Weight
  target: Target = dataclasses.field(default_factory=StopGradient)

  def __post_init__(self):
    _ = self._target_decay

  @property
  def _target_decay(self) -> Decay | None:
    """mu(step) of the target average, or None for theta- = sg(theta)."""
    return self.target.decay(self.pairs.scales)

  @property
  def needs(self) -> Needs:
    """A teacher, if the drift is one's; the target's average; f(x, sigma_min) = x, where a grid ends, and
    without a grid a diffusion model to start from."""
    return Needs(
      teacher=self.drift.needs_teacher,
      target_decay=self._target_decay,
      distance=self.distance,
      boundary=self.pairs.scales is not None,
      start=self.pairs.scales is None,  # ECT tunes a diffusion model: the first stage's r = 0 is its loss
    )

  def progress(self, step: Array | int) -> Metrics:
    """Return N(k) or the stage, and mu(k) of an averaged target."""
    decay = self._target_decay
    return self.pairs.metrics(step) | ({} if decay is None else {"target_decay": jnp.asarray(decay(step))})

  def finest_gap(self, step: int) -> float:
    """Return the smallest (t - r)/t of many pairs, as they are drawn at a step."""
    t, r = self.pairs(jax.random.key(0), 8192, jnp.asarray(step))
    return float(((t - r) / t).min())

  def draw(self, key: Array, batch: Batch, step: Array) -> ConsistencyDraws:
    """Draw noise-level pairs and noise for a batch."""
    x = batch["image"]
    pairs_key, z_key, dropout_key = jax.random.split(key, 3)
    t, r = self.pairs(pairs_key, x.shape[0], step)
    return ConsistencyDraws(t, r, jax.random.normal(z_key, x.shape, x.dtype), dropout_key)

  def loss(
    self, params: Params, context: Context, batch: Batch, draws: ConsistencyDraws, step: Array
  ) -> ObjectiveOutput:
    """Return the consistency loss for given draws; `batch["image"]` is float in [-1, 1].

    Raises:
      ValueError: An averaged target without `context.target_params`.
    """
    x, (t, r, z, key), condition = batch["image"], draws, Condition.of(batch)
    x_t = x + append_dims(t, x) * z
    x_r = jax.lax.stop_gradient(self.solver(self.drift(context, batch, condition), x_t, t, r))

    f = context.student(params, condition, key)
    if context.target_params is None and self._target_decay is not None:
      raise ValueError(
        "an averaged target needs context.target_params, the optimiser's average called 'target'"
      )
    target_params = jax.lax.stop_gradient(params if context.target_params is None else context.target_params)
    f_target = context.student(target_params, condition, key)
    # At r = 0 the scalings are singular (ln 0); any r > 0 does there, since its value is not used.
    target = jnp.where(append_dims(r > 0, x), f_target(x_r, jnp.where(r > 0, r, t)), x_r)

    distance = self.distance(f(x_t, t), jax.lax.stop_gradient(target), context.distance_params)
    per_example = self.weight(t, r, self.noise.sigma_data) * distance
    return ObjectiveOutput(
      per_example.mean(), per_example, t, {"distance": distance.mean(), **self.progress(step)}
    )
