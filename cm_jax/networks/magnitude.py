"""Magnitude-preserving operations (EDM2, appendix B): of unit-variance input each has unit variance."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.networks.layers import conv
from cm_jax.networks.module import Module
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
  """Project every magnitude-preserving weight onto unit magnitude: EDM2's forced weight normalisation.

  To be applied after each update. Gains, frequencies and phases stay as they are.

  >>> params = {"conv": {"weight": jnp.full((4, 2), 3.0)}, "gain": jnp.array(3.0)}
  >>> print(normalize_weights(params)["conv"]["weight"][0].round(3))
  [1. 1.]
  """
  is_weight = lambda path: path[-1:] == (jax.tree_util.DictKey("weight"),)
  project = lambda path, leaf: normalize_weight(leaf) if is_weight(path) else leaf
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
  """Concatenate channels; a and b contribute as 1-t to t whatever their widths (EDM2 eq. 103)."""
  scale = math.sqrt((a.shape[-1] + b.shape[-1]) / ((1 - t) ** 2 + t**2))
  share_a, share_b = scale / math.sqrt(a.shape[-1]) * (1 - t), scale / math.sqrt(b.shape[-1]) * t
  return jnp.concatenate([a * share_a, b * share_b], axis=-1)


class MPFourier(Module):
  """Embed x [B] as sqrt(2) cos(f x + p) (EDM2 eq. 75).

  Frequencies (times 2 pi) and phases are random and fixed, kept beside the weights.
  """

  channels: int
  bandwidth: float = 1.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    freqs = self.param("freqs", nn.initializers.normal(2 * np.pi * self.bandwidth), (self.channels,))
    phases = self.param("phases", nn.initializers.uniform(2 * np.pi), (self.channels,))
    freqs, phases = (jax.lax.stop_gradient(a).astype(x.dtype) for a in (freqs, phases))
    return jnp.cos(x[:, None] * freqs[None] + phases[None]) * math.sqrt(2)


class MPConv(Module):
  """Convolution with a normalised weight and no bias (EDM2 eq. 47, 66); for `kernel = 0` a linear map.

  The weight, [k, k, in, out] or [in, out], is normalised in every pass, training or not, and the gradient
  goes through that: `normalize_weights` after each update keeps the stored weight normalised too, so that the
  effective learning rate does not decay.
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
