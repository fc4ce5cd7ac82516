"""Denoising score matching: what trains a diffusion teacher."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cm_jax.diffusion.noise import append_dims, lognormal_sigma
from cm_jax.errors import UserError
from cm_jax.types import Array, Batch, Context, NoiseRange, ObjectiveOutput, Params


class DenoisingDraws(NamedTuple):
  """sigma [B]; z [B,H,W,C] standard normal; dropout key."""

  sigma: Array
  z: Array
  key: Array


@dataclasses.dataclass(frozen=True)
class Denoising:
  """E[lambda(sigma) ||D(x + sigma z, sigma) - x||^2], ln sigma ~ N(P_mean, P_std^2), lambda = 1/c_out^2 (EDM eq. 2, table 1).

  lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

  Args:
    noise: For sigma_data.
    P_mean, P_std: Of ln sigma.
    reduction: "sum" over pixels as EDM and jcm, or "mean" as OpenAI; it matters for clipping, Adam's eps and the logged loss.
  """

  noise: NoiseRange
  P_mean: float = -1.2
  P_std: float = 1.2
  reduction: str = "sum"

  needs_teacher = False
  target_decay = None

  def __post_init__(self):
    if self.reduction not in ("sum", "mean"):
      raise UserError("config.objective.reduction", self.reduction, "sum or mean")

  def draw(self, key: Array, batch: Batch, step: Array) -> DenoisingDraws:
    """Draw noise levels and noise for a batch."""
    x = batch["image"]
    sigma_key, z_key, dropout_key = jax.random.split(key, 3)
    sigma = lognormal_sigma(jax.random.normal(sigma_key, x.shape[:1], x.dtype), self.P_mean, self.P_std)
    return DenoisingDraws(sigma, jax.random.normal(z_key, x.shape, x.dtype), dropout_key)

  def loss(self, params: Params, context: Context, batch: Batch, draws: DenoisingDraws, step: Array) -> ObjectiveOutput:
    """Return the weighted squared error for given draws; `batch["image"]` is float in [-1, 1]."""
    x, (sigma, z, key) = batch["image"], draws
    denoise = context.student(params, label=batch.get("label"), augment_label=batch.get("augment_label"), key=key)
    error = jnp.square(denoise(x + append_dims(sigma, x) * z, sigma) - x).reshape(x.shape[0], -1)
    reduced = error.sum(axis=1) if self.reduction == "sum" else error.mean(axis=1)
    sigma_data = self.noise.sigma_data
    per_example = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * reduced
    return ObjectiveOutput(per_example.mean(), per_example, sigma, {})

  def __call__(self, params: Params, context: Context, batch: Batch, key: Array, step: Array) -> ObjectiveOutput:
    """Draw, then return the loss."""
    return self.loss(params, context, batch, self.draw(key, batch, step), step)
