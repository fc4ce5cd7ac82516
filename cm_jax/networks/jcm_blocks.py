"""The layers and blocks of jcm's NCSN++, named as in its checkpoints ("Conv_0/kernel", "NIN_0/W")."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.networks import layers
from cm_jax.networks.layers import Init, attend, check_divides, downsample, upsample
from cm_jax.networks.module import Module
from cm_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "swish": nn.silu,
  "elu": nn.elu,
  "relu": nn.relu,
  "lrelu": functools.partial(nn.leaky_relu, negative_slope=0.2),
}


def _init(scale: float = 1.0) -> Init:
  """Return jcm's initialiser: uniform with variance scale over the mean fan; 0 stands for 1e-10."""
  return Init("xavier_uniform", math.sqrt(scale or 1e-10))


class Weights(Module):
  """A convolution [k, k, in, out] or, for `window = None`, a linear map [in, out], with bias."""

  features: int
  window: int | None = None
  scale: float = 1.0
  names: tuple[str, str] = ("kernel", "bias")
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, apply: Callable[[Array, Array], Array] | None = None) -> Array:
    """Apply the weight by `apply(x, weight)`, by default with stride 1 and zero padding; add the bias."""
    window = self.window
    shape = (() if window is None else (window, window)) + (x.shape[-1], self.features)
    weight = self.param(self.names[0], _init(self.scale).weight, shape).astype(self.dtype)
    bias = self.param(self.names[1], nn.initializers.zeros, (self.features,)).astype(self.dtype)
    if apply is None:
      apply = jnp.matmul if window is None else lambda x, weight: layers.conv(x, weight, window // 2)
    y = apply(x.astype(self.dtype), weight)
    return y + jnp.broadcast_to(bias, y.shape)


class GroupNorm(Module):
  """Group norm with parameters named "scale" and "bias", in groups of at least 4 channels."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    groups = max(1, min(c // 4, 32))
    check_divides("nf", c, groups, "norm groups")
    scale = self.param("scale", nn.initializers.ones, (c,))
    return layers.group_norm(x, scale, self.param("bias", nn.initializers.zeros, (c,)), groups, 1e-6)


class GaussianFourierProjection(Module):
  """Embed x [B] as [sin(2 pi W x), cos(2 pi W x)], with fixed random W kept beside the weights."""

  channels: int
  scale: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    frequencies = jax.lax.stop_gradient(self.param("W", nn.initializers.normal(self.scale), (self.channels,)))
    phase = x[:, None] * (2 * np.pi * frequencies.astype(x.dtype))[None]
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class Resize(Module):
  """jcm's Upsample and Downsample: 2x resampling, joined with a 3x3 convolution where `with_conv`."""

  features: int
  up: bool
  with_conv: bool
  taps: tuple[float, ...] | None  # None: nearest neighbours up, strides or means down
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if not self.with_conv:
      return upsample(x, self.taps or (1, 1)) if self.up else downsample(x, (self.taps or (1, 1))[::-1])
    if self.taps is None:
      conv = Weights(self.features, 3, dtype=self.dtype, name="Conv_0")
      if self.up:
        return conv(upsample(x))
      padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
      return conv(padded, lambda x, weight: layers.conv(x, weight, 0, 2))
    taps, edge = self.taps, (len(self.taps) - 1) // 2
    conv = Weights(self.features, 3, names=("weight", "bias"), dtype=self.dtype, name="Conv2d_0")
    if self.up:
      doubled = upsample(x, taps, max(edge - 1, 0))
      return conv(doubled, lambda x, weight: layers.conv(x, weight, max(1 - edge, 0)))
    return conv(x, lambda x, weight: downsample(layers.conv(x, weight, 1 + edge), taps[::-1], 0))


class ResnetBlock(Module):
  """jcm's residual blocks: "biggan" (may resample, 1x1 convolution on the skip path) and "ddpm"."""

  features: int
  kind: str
  act: str
  dropout: float
  taps: tuple[float, ...]
  skip_rescale: bool
  init_scale: float
  up: bool = False
  down: bool = False
  train: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, emb: Array | None) -> Array:
    act = ACTIVATIONS[self.act]
    weights = functools.partial(Weights, self.features, dtype=self.dtype)
    taps = self.taps if self.up else self.taps[::-1]
    resized = functools.partial(layers.resample, up=self.up, down=self.down, resample_filter=taps)
    h = weights(3, name="Conv_0")(resized(act(GroupNorm(name="GroupNorm_0")(x))))
    if emb is not None:
      shift = weights(dtype=layers.wide(self.dtype).name, name="Dense_0")(act(emb))
      h = h + shift.astype(h.dtype)[:, None, None, :]
    h = nn.Dropout(self.dropout, deterministic=not self.train)(act(GroupNorm(name="GroupNorm_1")(h)))
    h = weights(3, self.init_scale, name="Conv_1")(h)
    skip = resized(x)
    if self.kind == "biggan" and (skip.shape[-1] != self.features or self.up or self.down):
      skip = weights(1, name="Conv_2")(skip)
    elif skip.shape[-1] != self.features:
      skip = weights(None, 0.1, ("W", "b"), name="NIN_0")(skip)
    return (skip + h) * (math.sqrt(0.5) if self.skip_rescale else 1.0)


class AttnBlock(Module):
  """Residual self-attention with one head."""

  skip_rescale: bool
  init_scale: float
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, height, width, c = x.shape
    linear = lambda i, scale: Weights(c, None, scale, ("W", "b"), self.dtype, name=f"NIN_{i}")
    h = GroupNorm(name="GroupNorm_0")(x)
    q, k, v = (linear(i, 0.1)(h).reshape(b, height * width, 1, c) for i in range(3))
    h = linear(3, self.init_scale)(attend(q, k, v).reshape(x.shape))
    return (x + h) * (math.sqrt(0.5) if self.skip_rescale else 1.0)
