"""Progressive distillation (Salimans & Ho 2022): a student whose every sampling step does two of its
teacher's, halved stage by stage."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax

from cm_jax.diffusion.curriculum import Curriculum
from cm_jax.diffusion.distances import L2
from cm_jax.diffusion.drifts import Teacher
from cm_jax.diffusion.grids import karras_sigma
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.solvers import euler
from cm_jax.diffusion.weights import Weight, truncated_snr
from cm_jax.types import (
  Array,
  Batch,
  Condition,
  Context,
  Distance,
  Metrics,
  Needs,
  NoiseRange,
  Objective,
  ObjectiveOutput,
  Params,
)  # fmt: skip


class ProgressiveDraws(NamedTuple):
  """t > mid > r, noise levels [B]; z [B,H,W,C] standard normal; dropout key."""

  t: Array
  mid: Array
  r: Array
  z: Array
  key: Array


@dataclasses.dataclass(frozen=True)
class Progressive(Objective):
  """E[lambda(t) d(D_theta(x_t, t), x*)], x* = x_t - t (x_r - x_t)/(r - t), x_r two Euler (DDIM)
  steps of the teacher away.

  x* is where one Euler step of the student from t to r has to aim at to land on x_r. The levels are those of
  a Karras grid with M(k)
  intervals: t, mid, r at the fractional indices i, i + 1/2, i + 1, i ~ U{0..M-1} (jcm and OpenAI `progdist`).
    Between stages the student
  becomes the teacher and the optimiser starts afresh, which is the training loop's to do (`needs.stages`).

  Args:
    noise: The grid's range, and sigma_data.
    scales: M(k), the student's sampling steps; "halving".
    distance: d(a, b) -> [B].
    weight: lambda(t, r, sigma_data) -> [B]; max(1/t^2, 1).

  Note:
    Sample with M Euler steps from sigma_max to sigma_min (`sampler.name = "euler"`).
  """

  trains: ClassVar[str] = "consistency"  # no denoiser: x* is where a long step has to aim at

  noise: NoiseRange
  scales: Curriculum
  distance: Distance = dataclasses.field(default_factory=L2)
  weight: Weight = truncated_snr

  @property
  def needs(self) -> Needs:
    """A teacher, and the first step of each stage with the end of the last."""
    stages = () if self.scales.end is None else (*self.scales.starts, self.scales.end)
    return Needs(teacher=True, stages=stages, distance=self.distance)

  def progress(self, step: Array | int) -> Metrics:
    """Return M(k)."""
    return {"num_scales": self.scales(step)}

  def draw(self, key: Array, batch: Batch, step: Array) -> ProgressiveDraws:
    """Draw grid intervals and noise for a batch."""
    x = batch["image"]
    index_key, z_key, dropout_key = jax.random.split(key, 3)
    num_steps = self.scales(step)
    levels = self.at(jax.random.randint(index_key, x.shape[:1], 0, num_steps), num_steps)
    return ProgressiveDraws(*levels, jax.random.normal(z_key, x.shape, x.dtype), dropout_key)

  def at(self, index: Array, num_steps: Array | int) -> tuple[Array, Array, Array]:
    """Return (t, mid, r) of grid interval `index`, 0 the noisiest of num_steps."""
    level = lambda offset: karras_sigma(index + offset, num_steps + 1, self.noise)
    return level(0.0), level(0.5), level(1.0)

  def loss(
    self, params: Params, context: Context, batch: Batch, draws: ProgressiveDraws, step: Array
  ) -> ObjectiveOutput:
    """Return the loss for given draws; `batch["image"]` is float in [-1, 1]."""
    x, (t, mid, r, z, key), condition = batch["image"], draws, Condition.of(batch)
    x_t = x + append_dims(t, x) * z
    drift = Teacher()(context, batch, condition)
    x_r = euler(drift, euler(drift, x_t, t, mid), mid, r)
    aim = jax.lax.stop_gradient(x_t - append_dims(t / (r - t), x) * (x_r - x_t))
    denoise = context.student(params, condition, key)
    distance = self.distance(denoise(x_t, t), aim, context.distance_params)
    per_example = self.weight(t, r, self.noise.sigma_data) * distance
    return ObjectiveOutput(
      per_example.mean(), per_example, t, {"distance": distance.mean(), **self.progress(step)}
    )
