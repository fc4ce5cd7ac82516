"""Continuous-time consistency models made stable (Lu & Song 2024, "sCM"): sCT and sCD in TrigFlow.

TrigFlow: x_t = cos t x + sin t sigma_data z, t in [0, pi/2]; dx/dt = sigma_data F(x_t/sigma_data, t) on the
  probability-flow ODE, and
f(x_t, t) = cos t x_t - sin t sigma_data F. A network with EDM's preconditioning is the same thing under sigma
= sigma_data tan t.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cm_jax.diffusion.curriculum import Curriculum
from cm_jax.diffusion.drifts import DriftSource
from cm_jax.diffusion.grids import karras_below
from cm_jax.diffusion.levels import Levels, Lognormal
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import check_scales
from cm_jax.errors import UserError
from cm_jax.networks.weighting import AdaptiveWeight
from cm_jax.types import (
  Array,
  Batch,
  Condition,
  Context,
  Metrics,
  Needs,
  NoiseRange,
  Objective,
  ObjectiveOutput,
  Params,
  Preconditioned,
  TrigScalings,
)  # fmt: skip

NOTHING = Condition()


class ScmDraws(NamedTuple):
  """t [B], TrigFlow's angles; z [B,H,W,C] standard normal; guidance [B] or None; dropout key."""

  t: Array
  z: Array
  guidance: Array | None
  key: Array


@dataclasses.dataclass(frozen=True)
class Scm(Objective):
  """e^w(t)/D ||F_theta - sg(F_theta + g/(||g|| + c))||^2 - w(t), g the tangent (sCM Alg. 1).

  g = -cos^2 t (sigma_data F - dx/dt) - rho (cos t sin t x_t + u),   u =
  cos t sin t sigma_data dF/dt along the trajectory,

  where u is one forward-mode derivative that shares its primal with the loss. dx/dt is the teacher's (sCD) or
  cos t sigma_data z - sin t x (sCT); rho = min(1, step / warmup_steps).

  Args:
    noise: sigma_data and, for `scales`, the grid.
    drift: Of `DRIFTS`: a teacher's (sCD) or the Monte Carlo estimate (sCT).
    levels: Distribution of sigma = sigma_data tan t.
    warmup_steps: Of the tangent's second, unstable part; 0 for none. The paper takes 10,000 steps.
    c: Of the tangent normalisation g / (||g|| + c), one plain L2 norm per example.
    clip: If positive, the tangent is clipped to [-clip, clip] instead of normalised (the paper's alternative,
      with 1).
    adaptive: Learn the weight e^w(t) (`params["weighting"]`), from 0; False: w = 0. Where tangents are much
      longer than c its optimum is log D at every t, which weighs the levels as w = 0 does. In a short run
      only the levels that are drawn often come there, and weigh D times as much as the others, or more: look
      at `log_weight` among the metrics, w by noise level.
    scales: If given, the discrete-time fallback (dsCM): the target is one DDIM step away, on the Karras grid
      with N(k) points, and no derivative is taken. It tends to the tangent above as N grows, and loses digits
      beyond N = 1024 in float32.
    guidance: (low, high): learn a teacher guided with a scale s ~ U[low, high], F_unc + s (F_cond - F_unc),
      which the student takes as an input. Empty for none.

  Note:
    FastGen divides the norm by sqrt(D) and weights the loss by 1/sin t; both depart from Alg. 1.

  Raises:
    UserError: A field out of range.
  """

  trains: ClassVar[str] = "consistency"

  noise: NoiseRange
  drift: DriftSource
  levels: Levels = dataclasses.field(default_factory=lambda: Lognormal(-1.0, 1.4))
  warmup_steps: int = 0
  c: float = 0.1
  clip: float = 0.0
  adaptive: bool = True
  scales: Curriculum | None = None
  guidance: tuple[float, ...] = ()

  def __post_init__(self):
    for field in ("c", "clip"):
      if getattr(self, field) < 0:
        raise UserError(field, getattr(self, field), "a number >= 0")
    wrong = self.guidance and (len(self.guidance) != 2 or self.guidance[0] > self.guidance[1])
    if wrong or (self.guidance and not self.drift.needs_teacher):
      expected = 'a range (low, high) such as (1.0, 2.0), with drift "teacher"'
      raise UserError("guidance", self.guidance, expected)
    if self.scales is not None:
      check_scales(self.scales)

  @property
  def needs(self) -> Needs:
    """TrigFlow's F; a diffusion model to start from; a teacher, if the drift is one's; the head of w, if
    it is learnt; a guidance scale, if there is one."""
    weighting = (lambda key: AdaptiveWeight().init(key, jnp.zeros(1))["params"]) if self.adaptive else None
    guidance = bool(self.guidance)
    return Needs(
      teacher=self.drift.needs_teacher, trigflow=True, weighting=weighting, guidance=guidance, start=True
    )

  def progress(self, step: Array | int) -> Metrics:
    """Return N(k) of the discrete fallback."""
    return {} if self.scales is None else {"num_scales": self.scales(step)}

  def draw(self, key: Array, batch: Batch, step: Array) -> ScmDraws:
    """Draw angles, noise and guidance scales for a batch."""
    x = batch["image"]
    t_key, z_key, guidance_key, dropout_key = jax.random.split(key, 4)
    t = jnp.arctan(self.levels(t_key, x.shape[0]) / self.noise.sigma_data)
    guidance = None
    if self.guidance:
      guidance = jax.random.uniform(guidance_key, x.shape[:1], x.dtype, *self.guidance)
    return ScmDraws(t, jax.random.normal(z_key, x.shape, x.dtype), guidance, dropout_key)

  def loss(
    self, params: Params, context: Context, batch: Batch, draws: ScmDraws, step: Array
  ) -> ObjectiveOutput:
    """Return the loss for given draws; `batch["image"]` is float in [-1, 1]."""
    F, g = self.tangent(params, context, batch, draws, step)
    flat = lambda values: values.reshape(values.shape[0], -1)
    norm = jnp.sqrt(jnp.sum(flat(jnp.square(g)), axis=1))
    g = jnp.clip(g, -self.clip, self.clip) if self.clip else g / append_dims(norm + self.c, g)
    error = jnp.mean(flat(jnp.square(F - jax.lax.stop_gradient(F + g))), axis=1)
    sigma = self.noise.sigma_data * jnp.tan(draws.t)
    w = jnp.zeros_like(sigma)
    if self.adaptive:
      w = jnp.asarray(AdaptiveWeight().apply({"params": params["weighting"]}, jnp.log(sigma) / 4))
    per_example = jnp.exp(w) * error - w
    rms = norm / math.sqrt(math.prod(g.shape[1:]))
    metrics = {"tangent_norm": rms.mean(), **self.progress(step)}
    by_level = {"tangent_norm": rms, **({"log_weight": w} if self.adaptive else {})}
    return ObjectiveOutput(per_example.mean(), per_example, sigma, metrics, by_level)

  def tangent(
    self, params: Params, context: Context, batch: Batch, draws: ScmDraws, step: Array
  ) -> tuple[Array, Array]:
    """Return F_theta(x_t/sigma_data, t) and the tangent g = cos t df/dt before normalisation;
    no gradient flows through g."""
    x, (t, z, guidance, key), condition = batch["image"], draws, Condition.of(batch)
    sigma_data = self.noise.sigma_data
    cos, sin = append_dims(jnp.cos(t), x), append_dims(jnp.sin(t), x)
    x_t = cos * x + sin * sigma_data * z
    if self.drift.needs_teacher:
      rate = jax.lax.stop_gradient(self._teacher_rate(context, x_t, t, condition._replace(guidance=guidance)))
    else:
      rate = cos * sigma_data * z - sin * x

    trigflow = trigflow_of(context.student)
    told = condition._replace(guidance=guidance)
    sign, c_noise, c_noise_rate = trigflow(t)
    F_of = lambda x_in, c_noise: sign * context.student.raw(params, x_in, c_noise, told, key)

    warmup = (
      jnp.minimum(1, (jnp.asarray(step, x.dtype) + 1) / self.warmup_steps) if self.warmup_steps else 1.0
    )
    if self.scales is None:
      # One evaluation gives both F, which the gradient flows through,
      # and its derivative along the trajectory.
      F, u = jax.jvp(F_of, (x_t / sigma_data, c_noise), (cos * sin * rate, sigma_data * c_noise_rate))
      fixed, u = jax.lax.stop_gradient((F, u))
      return F, -(cos**2) * (sigma_data * fixed - rate) - warmup * (cos * sin * x_t + u)
    F = F_of(x_t / sigma_data, c_noise)
    earlier = lambda x_in, t_in: jax.lax.stop_gradient(F_of(x_in, trigflow(t_in).c_noise))
    change = self._difference(earlier, jax.lax.stop_gradient(F), x_t, t, rate, warmup, self.scales(step))
    return F, cos * change

  def _teacher_rate(self, context: Context, x_t: Array, t: Array, condition: Condition) -> Array:
    """Return dx/dt = sigma_data F of the teacher, guided if the condition has a scale;
    the teacher itself takes none."""
    if context.teacher is None:
      raise ValueError("the drift of a teacher needs context.teacher")
    teacher, params, sigma_data = context.teacher, context.teacher_params, self.noise.sigma_data
    rate = lambda told: velocity(teacher, params, x_t, t, sigma_data, told)
    told = condition._replace(guidance=None)
    conditional = rate(told)
    if condition.guidance is None:
      return conditional
    if told.label is None:
      raise ValueError("guidance needs labels")
    unconditional = rate(told._replace(label=jnp.full_like(told.label, -1)))
    return unconditional + append_dims(condition.guidance, x_t) * (conditional - unconditional)

  def _difference(
    self,
    F_of: Callable[[Array, Array], Array],
    F: Array,
    x_t: Array,
    t: Array,
    rate: Array,
    warmup: Array | float,
    num_scales: Array,
  ) -> Array:
    """Return dsCM's tangent over cos t: for rho = 1, (f(x_t, t) - f(x_t', t')) / sin(t - t')
    with x_t' one DDIM step away."""
    sigma_data = self.noise.sigma_data
    sigma = sigma_data * jnp.tan(t)
    earlier = self.level_below(sigma, num_scales)
    t_prime = jnp.arctan(earlier / sigma_data)
    # t - t' without cancellation
    gap = append_dims(jnp.arctan2((sigma - earlier) * sigma_data, sigma_data**2 + sigma * earlier), x_t)
    x_prime = jnp.cos(gap) * x_t - jnp.sin(gap) * rate
    F_prime = F_of(x_prime / sigma_data, t_prime)
    cos, sin = append_dims(jnp.cos(t_prime), x_t), append_dims(jnp.sin(t_prime), x_t)
    change = sigma_data * (jnp.cos(gap) * F - F_prime) / jnp.sin(gap)
    return -cos * (sigma_data * F - rate) - warmup * sin * (x_t + change)

  def level_below(self, sigma: Array, num_scales: Array | int) -> Array:
    """Return the level one interval of the Karras grid below sigma [B]; at or below sigma_min, half of it."""
    lower = karras_below(sigma, num_scales, self.noise)
    return jnp.maximum(lower, jnp.minimum(self.noise.sigma_min, sigma / 2))


def trigflow_of(network: Preconditioned) -> Callable[[Array], TrigScalings]:
  """Return what a network's F is in TrigFlow.

  Raises:
    UserError: A preconditioning under which it is nothing.
  """
  trigflow = network.precond.trigflow
  if trigflow is None:
    raise UserError("precond", type(network.precond).__name__, "one with a TrigFlow form")
  return trigflow


def velocity(
  network: Preconditioned,
  params: Params,
  x_t: Array,
  t: Array,
  sigma_data: float,
  condition: Condition = NOTHING,
) -> Array:
  """Return dx/dt of a denoiser's probability-flow ODE in TrigFlow, sigma_data F (sCM eq.
  3, B.1), in evaluation mode.

  (cos t x_t - D(x_t / cos t, sigma_data tan t)) / sin t, without its cancellation where the network's raw F
  has a meaning in TrigFlow and its sigma_data is ours.

  Args:
    network, params: The denoiser.
    x_t: [B,H,W,C] in TrigFlow, at angles t [B].
    sigma_data: Of the TrigFlow process.
    condition: What the denoiser is told.
  """
  trigflow = network.precond.trigflow
  if trigflow is not None and network.precond.noise.sigma_data == sigma_data:
    sign, c_noise, _ = trigflow(t)
    return sign * sigma_data * network.raw(params, x_t / sigma_data, c_noise, condition)
  cos, sin = append_dims(jnp.cos(t), x_t), append_dims(jnp.sin(t), x_t)
  return (cos * x_t - network(params, condition)(x_t / cos, sigma_data * jnp.tan(t))) / sin
