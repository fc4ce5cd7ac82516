"""Guidance of diffusion models, as a Denoiser made of two: classifier-free guidance and autoguidance."""

import math

import jax.numpy as jnp

from cm_jax.diffusion.noise import append_dims
from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.types import Array, Denoiser


def guided(
  good: Denoiser, other: Denoiser, scale: float, interval: tuple[float, float] = (0.0, math.inf)
) -> Denoiser:
  """Return D = D_other + scale (D_good - D_other): two network evaluations where it was one.

  With the same network without its label as `other`, classifier-free guidance (Ho & Salimans 2022); with a
  smaller or less trained network, autoguidance (Karras et al. 2024). Meant for diffusion models; a
  consistency model is guided by distilling a guided teacher.

  Args:
    good: The conditional denoiser.
    other: What to move away from.
    scale: 1 is `good` alone.
    interval: Noise levels inside which it acts, `good` alone outside (Kynkaanniemi et al. 2024).

  >>> d = guided(lambda x, s: x + 1, lambda x, s: x, 3.0, interval=(0.5, 2.0))
  >>> d(jnp.zeros((2, 1, 1, 1)), jnp.array([1.0, 5.0])).ravel().tolist()
  [3.0, 1.0]
  """
  low, high = interval

  def denoise(x: Array, sigma: Array) -> Array:
    best = good(x, sigma)
    amount = jnp.where((sigma >= low) & (sigma <= high), scale - 1, 0.0).astype(x.dtype)
    return best + append_dims(amount, x) * (best - other(x, sigma))

  return denoise


def check_guidance(model: Model, guidance: float | None) -> None:
  """Check that a model can be guided by a scale.

  Raises:
    UserError: It is unconditional.
  """
  if guidance is not None and not model.num_classes:
    raise UserError("guidance", guidance, "none: the model has no classes")
