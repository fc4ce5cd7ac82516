"""The layers that architectures share: linear, convolution, group norm, resampling, embeddings, attention.

Parameters carry PyTorch's names ("weight", "bias") so that a checkpoint converts by transposing alone:
convolutions are stored HWIO, linear maps [in, out]. `dtype` is what a layer computes in; parameters stay
float32 and statistics are taken in at least float32.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.errors import UserError
from cm_jax.networks import convolution, kernels
from cm_jax.networks.convolution import LAYOUT
from cm_jax.networks.module import Module
from cm_jax.types import Array


def wide(dtype: str) -> jnp.dtype:
  """Return the dtype for embeddings, statistics and outputs where `dtype` is computed in: at least float32.

  >>> wide("bfloat16")
  dtype('float32')
  """
  return jnp.promote_types(dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Init:
  """Initialise weights by a named distribution times a gain (EDM's `init_mode`, `init_weight`, `init_bias`).

  The distributions have unit gain: "xavier" has variance 2/(fan_in + fan_out), "kaiming" 1/fan_in, "unit" 1;
  "uniform" or "normal".
  """

  mode: str
  gain: float = 1.0
  bias_gain: float = 0.0

  def weight(self, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draw a weight of shape [..., in, out]; the leading axes count towards both fans."""
    window = math.prod(shape[:-2])
    return self._draw(key, shape, dtype, window * shape[-2], window * shape[-1]) * self.gain

  def bias(
    self, key: Array, shape: tuple[int, ...], dtype=jnp.float32, *, fan_in: int = 1, fan_out: int = 1
  ) -> Array:
    """Draw a bias by the fans of its weight."""
    if self.bias_gain == 0:
      return jnp.zeros(shape, dtype)
    return self._draw(key, shape, dtype, fan_in, fan_out) * self.bias_gain

  def _draw(self, key: Array, shape: tuple[int, ...], dtype, fan_in: int, fan_out: int) -> Array:
    family, _, form = self.mode.partition("_")
    variance = {"xavier": 2 / (fan_in + fan_out), "kaiming": 1 / fan_in, "unit": 1}[family]
    flat = (math.prod(shape),)  # XLA compiles a draw of one axis 6 times faster than one of four
    if form == "normal":
      unit = jax.random.normal(key, flat, dtype)
    else:
      unit = jax.random.uniform(key, flat, dtype, -(3**0.5), 3**0.5)
    return unit.reshape(shape) * math.sqrt(variance)


class Scope(Module):
  """Call `body(*args)` with its submodules one level down: "enc.NAME" by `Scope(name="enc")(body)`."""

  @nn.compact
  def __call__(self, body, *args):
    return body(*args)


class Linear(Module):
  """x [..., in] -> [..., features]; weight [in, features]."""

  features: int
  initial: Init = Init("xavier_uniform")
  use_bias: bool = True
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in = x.shape[-1]
    weight = self.param("weight", self.initial.weight, (fan_in, self.features))
    y = x.astype(self.dtype) @ weight.astype(self.dtype)
    if self.use_bias:
      draw = lambda key, shape: self.initial.bias(key, shape, fan_in=fan_in, fan_out=self.features)
      bias = self.param("bias", draw, (self.features,))
      y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
    return y


class Embedding(Module):
  """Rows of a table [entries, features]; zeros where the one-hot row [B, entries] is zero."""

  features: int
  stddev: float = 1.0

  @nn.compact
  def __call__(self, row: Array) -> Array:
    table = self.param("weight", nn.initializers.normal(self.stddev), (row.shape[-1], self.features))
    return row @ table.astype(row.dtype)


def conv(x: Array, weight: Array, padding: int, stride: int = 1) -> Array:
  """Convolve x [B,H,W,I] with weight [k,k,I,O], zero padding; a 1x1 kernel is a matrix product."""
  if stride == 1 and min(weight.shape[2:]) >= convolution.THIN and kernels.pays(x):
    return convolution.convolve(x, weight, padding)
  return convolution.plain(x, weight, padding, stride)


def _depthwise(x: Array, taps: tuple[float, ...], gain: float, **window) -> Array:
  window_weights = np.outer(taps, taps) * (gain / sum(taps) ** 2)
  kernel = jnp.asarray(np.tile(window_weights[:, :, None, None], (1, 1, 1, x.shape[-1])), x.dtype)
  options: dict[str, Any] = {"dimension_numbers": LAYOUT, "feature_group_count": x.shape[-1], **window}
  return jax.lax.conv_general_dilated(x, kernel, **options)


def downsample(x: Array, taps: tuple[float, ...] = (1, 1), padding: int | None = None) -> Array:
  """Halve H and W with the separable filter `taps`, normalised to sum 1.

  `padding` is (len(taps) - 1) // 2 by default.

  >>> downsample(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
  [[[[1.5]]]]
  """
  b, h, w, c = x.shape
  if len(taps) == 2 and taps[0] == taps[1] and not padding and h % 2 == w % 2 == 0:
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  pad = (len(taps) - 1) // 2 if padding is None else padding
  return _depthwise(x, taps, 1.0, window_strides=(2, 2), padding=[(pad, pad)] * 2)


def upsample(x: Array, taps: tuple[float, ...] = (1, 1), padding: int | None = None) -> Array:
  """Double H and W with the separable filter `taps`, normalised to sum 2: `downsample`'s transpose, times 4.

  >>> upsample(jnp.array([[[[1.0]]]]))[0, :, :, 0].tolist()
  [[1.0, 1.0], [1.0, 1.0]]
  """
  b, h, w, c = x.shape
  if len(taps) == 2 and taps[0] == taps[1] and not padding:
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
  edge = len(taps) - 1 - ((len(taps) - 1) // 2 if padding is None else padding)
  window = {"window_strides": (1, 1), "padding": [(edge, edge)] * 2, "lhs_dilation": (2, 2)}
  return _depthwise(x, tuple(taps[::-1]), 4.0, **window)


def resample(
  x: Array, *, up: bool = False, down: bool = False, resample_filter: tuple[float, ...] = (1, 1)
) -> Array:
  """Double, halve or keep H and W."""
  return upsample(x, resample_filter) if up else downsample(x, resample_filter) if down else x


class Conv(Module):
  """Convolution with optional 2x resampling before it (EDM's Conv2d); weight [kernel, kernel, in, features].

  `fused` joins resampling and convolution into one padded window: not the same function at the image border.
  """

  features: int
  kernel: int = 3
  stride: int = 1
  up: bool = False
  down: bool = False
  resample_filter: tuple[float, ...] = (1, 1)
  fused: bool = False
  initial: Init = Init("xavier_uniform")
  use_bias: bool = True
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    weight = self.param("weight", self.initial.weight, shape).astype(self.dtype)
    x = x.astype(self.dtype)
    taps, pad, edge = self.resample_filter, self.kernel // 2, (len(self.resample_filter) - 1) // 2
    if self.fused and self.up:
      x = conv(upsample(x, taps, max(edge - pad, 0)), weight, max(pad - edge, 0))
    elif self.fused and self.down:
      x = downsample(conv(x, weight, pad + edge), taps, 0)
    elif self.up and self.kernel == 1:  # commutes with the resampling and costs a quarter on the small side
      x = upsample(conv(x, weight, 0), taps)
    else:
      x = conv(resample(x, up=self.up, down=self.down, resample_filter=taps), weight, pad, self.stride)
    if self.use_bias:
      fans = {"fan_in": math.prod(shape[:-1]), "fan_out": math.prod(shape[:2]) * self.features}
      bias = self.param("bias", lambda key, shape: self.initial.bias(key, shape, **fans), (self.features,))
      x = x + bias.astype(self.dtype)[None, None, None, :]
    return x


def group_norm(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
  """Normalise x [B,...,C] over positions and the channels of a group, then scale and shift by channel.

  Moments are taken per channel first and combined on [B, C]: on CPU 1.5 times faster than reshaping x into
  groups (performance.md). The variance E[x^2] - E[x]^2 is clamped at 0 because it can round below.

  >>> group_norm(jnp.array([[[1.0], [3.0]]]), jnp.ones(1), jnp.zeros(1), 1, 0.0)[0, :, 0].tolist()
  [-1.0, 1.0]
  """
  b, c = x.shape[0], x.shape[-1]
  y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(1, x.ndim - 1))
  by_group = lambda moment: moment.reshape(b, groups, c // groups).mean(-1)
  mean, square = by_group(y.mean(axes)), by_group((y * y).mean(axes))
  inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + eps)
  scale = jnp.repeat(inverse, c // groups, axis=1) * weight[None]
  shift = bias[None] - jnp.repeat(mean, c // groups, axis=1) * scale
  middle = (b,) + (1,) * len(axes) + (c,)
  return (y * scale.reshape(middle) + shift.reshape(middle)).astype(x.dtype)


class GroupNorm(Module):
  """Group normalisation with min(`groups`, C // `min_channels`) groups (EDM: 32, of at least 4 channels).

  `silu` applies that too.
  """

  eps: float = 1e-5
  groups: int = 32
  min_channels: int = 4
  silu: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = x.shape[-1]
    groups = max(1, min(self.groups, c // self.min_channels))
    check_divides("model_channels", c, groups, "norm groups")
    weight = self.param("weight", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    if not self.silu:
      return group_norm(x, weight, bias, groups, self.eps)
    active = lambda x, weight, bias: nn.silu(group_norm(x, weight, bias, groups, self.eps))
    return kernels.recomputed(active)(x, weight, bias)


def pixel_norm(x: Array, eps: float = 1e-8) -> Array:
  """Scale x [..., C] to root mean square 1 over its channels: x / sqrt(mean(x^2) + eps) (sCM's pnorm, that of
  progressive GANs); in at least float32.

  >>> [f"{value:.3f}" for value in pixel_norm(jnp.array([3.0, 4.0])).tolist()]
  ['0.849', '1.131']
  """
  wide_x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide_x * jax.lax.rsqrt(jnp.mean(wide_x * wide_x, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def positional_embedding(
  x: Array, channels: int, endpoint: bool = False, max_positions: float = 10000.0
) -> Array:
  """Embed x [B] as [cos(x f), sin(x f)], [B, channels], f geometric from 1 to (about) 1/max_positions.

  `endpoint` reaches 1/max_positions exactly (DDPM); without it the last step is left out (ADM).
  An odd width ends with a zero.

  >>> positional_embedding(jnp.zeros(1), 4).tolist()
  [[1.0, 1.0, 0.0, 0.0]]
  """
  half = channels // 2
  freqs = (1 / max_positions) ** (np.arange(half) / max(half - (1 if endpoint else 0), 1))
  phase = x[:, None] * jnp.asarray(freqs, x.dtype)[None]
  return jnp.pad(jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1), ((0, 0), (0, channels % 2)))


class FourierEmbedding(Module):
  """Embed x [B] as [cos(2 pi f x), sin(2 pi f x)] with fixed random f ~ N(0, scale^2), which are stored."""

  channels: int
  scale: float = 16.0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    freqs = self.param("freqs", nn.initializers.normal(self.scale), (self.channels // 2,))
    phase = x[:, None] * (2 * np.pi * jax.lax.stop_gradient(freqs).astype(x.dtype))[None]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)


def check_divides(field: str, channels: int, parts: int, what: str) -> None:
  """Raise a UserError unless `channels` of a layer split into `parts`."""
  if channels % parts:
    raise UserError(field, f"a layer of {channels} channels", f"widths that split into {parts} {what}")


def attend(q: Array, k: Array, v: Array) -> Array:
  """Softmax attention, q, k, v [B, positions, heads, channels] -> the same shape, the softmax in float32.

  Logits are over sqrt(channels). Plain XLA on every backend: fused kernels have no `jax.jvp`, which sCM
  needs, and `jax.nn.dot_product_attention` rounds to float32.
  """
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=dtype) / math.sqrt(q.shape[-1])
  return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
