"""The residual U-Net block that EDM's SongUNet and DhariwalUNet have in common."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.networks.layers import (
  Conv,
  GroupNorm,
  Init,
  Linear,
  attend,
  check_divides,
  conv,
  pixel_norm,
  resample,
  wide,
)
from cm_jax.networks.module import Module
from cm_jax.types import Array

# How a block is told the noise level, with s and b one linear map of the conditioning vector: norm(h + b)
# (DDPM++, and ADM in iCT), norm(h) (s + 1) + b (ADM's AdaGN), or norm(h) pnorm(s) + pnorm(b), sCM's adaptive
# double normalisation, whose derivative in time stays bounded.
MODULATIONS: dict[str, dict[str, Any]] = {
  "shift": {"adaptive_scale": False},
  "scale_shift": {"adaptive_scale": True},
  "double": {"adaptive_scale": True, "double_norm": True},
}


class QKV(Module):
  """Map x [B, positions, C] to q, k and v, each [B, positions, heads, C / heads], by a 1x1 convolution.

  Its output channels are ordered (head, channel, q/k/v). The weight is regrouped, not the activations: on CPU
  that saves a tenth of a training step.
  """

  heads: int
  initial: Init
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array, Array]:
    b, n, c = x.shape
    check_divides("model_channels", c, self.heads, "attention heads")
    regroup = lambda a: jnp.moveaxis(a.reshape(-1, self.heads, c // self.heads, 3), 3, 1).reshape(-1, 3 * c)
    weight = self.param("weight", self.initial.weight, (1, 1, c, 3 * c))
    draw = lambda key, shape: self.initial.bias(key, shape, fan_in=c, fan_out=3 * c)
    bias = self.param("bias", draw, (3 * c,))
    y = conv(x[:, :, None], regroup(weight).astype(self.dtype)[None, None], 0)
    y = y + regroup(bias).astype(self.dtype)[None, None]
    q, k, v = jnp.split(y.reshape(b, n, 3 * self.heads, c // self.heads), 3, axis=2)
    return q, k, v


class UNetBlock(Module):
  """Residual block with noise-level conditioning, 2x resampling and self-attention (EDM appendix F.2).

  `heads = 0` means no attention. `adaptive_scale` conditions by scale and shift after the second norm,
  otherwise by a shift before it. `double_norm` brings scale and shift to magnitude 1, and does not take the
  scale from 1 on (sCM section 4.1). `resample_proj` puts a 1x1 convolution on the skip path of a resampling
  block even where the width does not change.
  """

  features: int
  heads: int = 0
  up: bool = False
  down: bool = False
  dropout: float = 0.0
  skip_scale: float = 1.0
  eps: float = 1e-5
  resample_filter: tuple[float, ...] = (1, 1)
  resample_proj: bool = False
  adaptive_scale: bool = True
  double_norm: bool = False
  initial: Init = Init("xavier_uniform")
  initial_zero: Init = Init("xavier_uniform", 1e-5)
  initial_attention: Init = Init("xavier_uniform")
  train: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, emb: Array) -> Array:
    resampling: dict[str, Any] = {"up": self.up, "down": self.down, "resample_filter": self.resample_filter}
    skip = x
    h = GroupNorm(self.eps, silu=True, name="norm0")(x)
    h = Conv(self.features, 3, **resampling, initial=self.initial, dtype=self.dtype, name="conv0")(h)
    width = self.features * (2 if self.adaptive_scale else 1)
    affine = Linear(width, self.initial, dtype=wide(self.dtype).name, name="affine")(emb)
    parts = jnp.split(affine, width // self.features, axis=-1)
    if self.double_norm:
      parts = [pixel_norm(part) for part in parts]
    *scales, shift = (part.astype(self.dtype)[:, None, None, :] for part in parts)
    norm1 = GroupNorm(self.eps, silu=not scales, name="norm1")
    if scales:
      h = nn.silu(norm1(h) * (scales[0] if self.double_norm else scales[0] + 1) + shift)
    else:
      h = norm1(h + shift)
    h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
    h = Conv(self.features, 3, initial=self.initial_zero, dtype=self.dtype, name="conv1")(h)
    if x.shape[-1] != self.features or ((self.up or self.down) and self.resample_proj):
      skip = Conv(self.features, 1, **resampling, initial=self.initial, dtype=self.dtype, name="skip")(x)
    elif self.up or self.down:
      skip = resample(x, **resampling)
    x = (h + skip) * self.skip_scale
    return (x + self._attention(x)) * self.skip_scale if self.heads else x

  def _attention(self, x: Array) -> Array:
    b, height, width, c = x.shape
    h = GroupNorm(self.eps, name="norm2")(x)
    q, k, v = QKV(self.heads, self.initial_attention, self.dtype, name="qkv")(h.reshape(b, height * width, c))
    h = attend(q, k, v).reshape(x.shape)
    return Conv(c, 1, initial=self.initial_zero, dtype=self.dtype, name="proj")(h)
