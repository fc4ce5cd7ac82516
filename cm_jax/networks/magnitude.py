"""Magnitude-preserving operations (Karras et al. 2024, "EDM2", appendix B): each keeps unit variance for unit-variance input."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.networks.layers import conv
from cm_jax.types import Array, Params

_EPS = 1e-4


def normalize(x: Array, axes: int | tuple[int, ...]) -> Array:
  """Scale x to root mean square 1 over `axes`, up to 1e-4 in the divisor (EDM2 eq. 66); in at least float32.

  >>> [round(v, 3) for v in normalize(jnp.array([3.0, 4.0]), -1).tolist()]
  [0.849, 1.131]
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.sum(wide * wide, axes, keepdims=True)
  # the root of 0 has no derivative, and an all-zero row comes about (a network input of zeros, a dropped row)
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  return (wide / (_EPS + norm * math.sqrt(norm.size / x.size))).astype(x.dtype)


def normalize_weight(weight: Array) -> Array:
  """Normalise a weight [..., in, out] over everything but its output channels."""
  return normalize(weight, tuple(range(weight.ndim - 1)))


def normalize_weights(params: Params) -> Params:
  """Project every magnitude-preserving weight of a params tree onto unit magnitude: EDM2's forced weight normalisation.

  To be applied after each update. Gains, frequencies and phases stay as they are.

  >>> print(normalize_weights({"conv": {"weight": jnp.full((4, 2), 3.0)}, "gain": jnp.array(3.0)})["conv"]["weight"][0].round(3))
  [1. 1.]
  """
  project = lambda path, leaf: normalize_weight(leaf) if path and getattr(path[-1], "key", None) == "weight" else leaf
  return jax.tree_util.tree_map_with_path(project, params)


def mp_silu(x: Array) -> Array:
  """SiLU over the root mean square it has for normal input (EDM2 eq. 81)."""
  return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: float = 0.5) -> Array:
  """Interpolate a and b, over the magnitude the result has when they are independent (EDM2 eq. 88).

  >>> print(mp_sum(jnp.ones(1), jnp.ones(1)).round(3))
  [1.414]
  """
  return (a + (b - a) * t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Array, b: Array, t: float = 0.5) -> Array:
  """Concatenate along channels so that a and b contribute in the ratio 1-t to t whatever their widths (EDM2 eq. 103)."""
  scale = math.sqrt((a.shape[-1] + b.shape[-1]) / ((1 - t) ** 2 + t**2))
  return jnp.concatenate([a * (scale / math.sqrt(a.shape[-1]) * (1 - t)), b * (scale / math.sqrt(b.shape[-1]) * t)], axis=-1)


class MPFourier(nn.Module):
  """Embed x [B] as sqrt(2) cos(f x + p), with fixed random frequencies (times 2 pi) and phases kept beside the weights (EDM2 eq. 75)."""

  channels: int
  bandwidth: float = 1.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    freqs = self.param("freqs", nn.initializers.normal(2 * np.pi * self.bandwidth), (self.channels,))
    phases = self.param("phases", nn.initializers.uniform(2 * np.pi), (self.channels,))
    freqs, phases = (jax.lax.stop_gradient(a).astype(x.dtype) for a in (freqs, phases))
    return jnp.cos(x[:, None] * freqs[None] + phases[None]) * math.sqrt(2)


class MPConv(nn.Module):
  """Convolution ([k, k, in, out]) or, for `kernel = 0`, linear map ([in, out]) with a normalised weight and no bias (EDM2 eq. 47, 66).

  The weight is normalised in every pass, training or not, and the gradient goes through that: `normalize_weights` after each update
  keeps the stored weight normalised too, so that the effective learning rate does not decay.
  """

  features: int
  kernel: int = 3
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
    shape = (self.kernel,) * (2 if self.kernel else 0) + (x.shape[-1], self.features)
    draw = lambda key, shape: normalize_weight(jax.random.normal(key, (math.prod(shape),)).reshape(shape))
    weight = normalize_weight(self.param("weight", draw, shape))
    weight = (weight * (gain / math.sqrt(math.prod(shape[:-1])))).astype(self.dtype)
    x = x.astype(self.dtype)
    return conv(x, weight, self.kernel // 2) if self.kernel else x @ weight
