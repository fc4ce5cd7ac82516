"""Consistency models in continuous time: the limit of CD and CT as the grid becomes infinitely fine (CM
appendix B).

With v = -(d/dt) f(x_t, t) along the trajectory, towards less noise, one forward-mode derivative of f:

  v = JVP of f at (x_t, t) along (-drift(x_t, t), -1),   drift = (x_t - D_phi)/t, or (x_t - x)/t =
  z from the data (CT)
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cm_jax.diffusion.drifts import DriftSource
from cm_jax.diffusion.levels import KarrasLevels, Levels
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.weights import Weight, uniform
from cm_jax.types import (
  Array,
  Batch,
  Condition,
  Context,
  Distance,
  Needs,
  NoiseRange,
  Objective,
  ObjectiveOutput,
  Params,
)  # fmt: skip


class ContinuousDraws(NamedTuple):
  """t [B], noise levels; z [B,H,W,C] standard normal; dropout key."""

  t: Array
  z: Array
  key: Array


@dataclasses.dataclass(frozen=True)
class Continuous(Objective):
  """Continuous-time consistency distillation and training (CM theorems 3 to 6).

  | distance d | loss per example | with stop-gradient, its pseudo-loss |
  |---|---|---|
  | twice differentiable (l2, LPIPS, pseudo-Huber) | v'Hv / 2 (theorem 3) | -f . sg(H v) (theorems 5, 6) |
  | a norm (l1, pseudo-Huber with c = 0) | d(v, 0) (theorem 4) | -f . sg(grad d(v, 0)) |

  with H the Hessian of d(., f) at f. For l2, a mean over D values, these are mean(v^2) and -(2/D) f . sg(v).

  Args:
    noise: For sigma_data and the default levels.
    drift: Of `DRIFTS`: a teacher's (distillation) or the Monte Carlo estimate (training in isolation).
    distance: d(a, b) -> [B].
    stop_gradient: Whether the target is held fixed. Without it the gradient goes through v too: twice the
      cost, and for the Monte Carlo drift a biased objective (CM section B.2 derives training for
      stop-gradient only).
    levels: Distribution of t; sigma_min^(1/rho) to sigma_max^(1/rho), uniformly, by default.
    weight: lambda(t, r, sigma_data), taken at r = t.

  Note:
    The value of a pseudo-loss says nothing about progress (CM remark 6): `tangent_norm`, the root mean square
    of v, does. The prefactors (d tau^-1/dt)^k of the theorems are 1, as in jcm's code. jcm's "l2" is the norm
    ||v||, i.e. pseudo-Huber with c = 0, and D/2 of the pseudo-loss here.
  """

  trains: ClassVar[str] = "consistency"

  noise: NoiseRange
  drift: DriftSource
  distance: Distance
  stop_gradient: bool = True
  levels: Levels | None = None
  weight: Weight = uniform

  @property
  def needs(self) -> Needs:
    """A teacher, if the drift is one's; f(x, sigma_min) = x, where trajectories end."""
    return Needs(teacher=self.drift.needs_teacher, distance=self.distance, boundary=True)

  def draw(self, key: Array, batch: Batch, step: Array) -> ContinuousDraws:
    """Draw noise levels and noise for a batch."""
    x = batch["image"]
    t_key, z_key, dropout_key = jax.random.split(key, 3)
    t = (self.levels or KarrasLevels(self.noise))(t_key, x.shape[0])
    return ContinuousDraws(t, jax.random.normal(z_key, x.shape, x.dtype), dropout_key)

  def loss(
    self, params: Params, context: Context, batch: Batch, draws: ContinuousDraws, step: Array
  ) -> ObjectiveOutput:
    """Return the loss for given draws; `batch["image"]` is float in [-1, 1]."""
    x, (t, z, key), condition = batch["image"], draws, Condition.of(batch)
    x_t = x + append_dims(t, x) * z
    # Of the Monte Carlo estimate it is z: exactly, where (x_t - x)/t would round.
    drift = (
      jax.lax.stop_gradient(self.drift(context, batch, condition)(x_t, t)) if self.drift.needs_teacher else z
    )
    student = context.student(params, condition, key)
    # One evaluation gives both f, which the gradient flows through, and v.
    f, v = jax.jvp(student, (x_t, t), (-drift, -jnp.ones_like(t)))
    distance = lambda a, b: self.distance(a, b, context.distance_params)
    is_norm = self.distance.is_norm
    if self.stop_gradient:
      v = jax.lax.stop_gradient(v)
      pull = jax.lax.stop_gradient(pull_of(distance, is_norm, jax.lax.stop_gradient(f), v))
      unweighted = -jnp.sum((f * pull).reshape(f.shape[0], -1), axis=1)
    elif is_norm:
      unweighted = distance(v, jnp.zeros_like(v))
    else:
      unweighted = 0.5 * jnp.sum((v * pull_of(distance, is_norm, f, v)).reshape(v.shape[0], -1), axis=1)
    per_example = self.weight(t, t, self.noise.sigma_data) * unweighted
    tangent_norm = jnp.sqrt(jnp.mean(jnp.square(v).reshape(v.shape[0], -1), axis=1))
    metrics = {"tangent_norm": tangent_norm.mean()}
    return ObjectiveOutput(per_example.mean(), per_example, t, metrics, {"tangent_norm": tangent_norm})


def pull_of(distance: Callable[[Array, Array], Array], is_norm: bool, f: Array, v: Array) -> Array:
  """Return the direction in which a small step against v changes d(f, target) most:
  H v, or for a norm its gradient at v.

  Args:
    distance: (a, b) -> [B].
    is_norm: Whether it is a norm of a - b.
    f, v: [B,H,W,C].

  >>> import jax.numpy as jnp
  >>> mean_square = lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3))
  >>> pull_of(mean_square, False, jnp.ones((1, 1, 1, 2)), jnp.full((1, 1, 1, 2), 3.0)).ravel().tolist()
  [3.0, 3.0]
  """
  if is_norm:
    return jax.grad(lambda a: distance(a, jnp.zeros_like(v)).sum())(v)
  gradient = jax.grad(lambda a: distance(a, f).sum())
  # Forward over reverse: the Hessian is never formed, and a network inside the distance is differentiated
  #   once each way.
  return jax.jvp(gradient, (f,), (v,))[1]
