"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, "config G").

Submodules and parameters are named as in EDM2's checkpoints below "unet."
("enc.64x64_block0.conv_res0.weight"). Training needs `normalize_weights(params)` after each update: its
`projection`.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.layers import Scope, attend, check_divides, pixel_norm, positional_embedding, resample
from cm_jax.networks.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize, normalize_weights
from cm_jax.networks.module import Module
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition, Params


class EDM2Block(Module):
  """Residual block of EDM2's encoder (`flavor = "enc"`: widen and normalise first) or decoder ("dec")."""

  features: int
  flavor: str = "enc"
  resample_mode: str = "keep"
  resample_filter: tuple[float, ...] = (1, 1)
  heads: int = 0
  dropout: float = 0.0
  res_balance: float = 0.3
  attn_balance: float = 0.3
  clip_act: float | None = 256.0
  double_norm: bool = False
  train: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, emb: Array) -> Array:
    conv = functools.partial(MPConv, dtype=self.dtype)
    up, down = (self.resample_mode == mode for mode in ("up", "down"))
    x = resample(x, up=up, down=down, resample_filter=self.resample_filter)
    widen = conv(self.features, 1, name="conv_skip") if x.shape[-1] != self.features else lambda x: x
    if self.flavor == "enc":
      x = normalize(widen(x), -1)
    y = conv(self.features, name="conv_res0")(mp_silu(x))
    gain = self.param("emb_gain", nn.initializers.zeros, ())
    scale = MPConv(self.features, 0, layers.wide(self.dtype).name, name="emb_linear")(emb, gain) + 1
    if self.double_norm:
      y, scale = pixel_norm(y), pixel_norm(scale)
    y = mp_silu(y * scale.astype(y.dtype)[:, None, None, :])
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    y = conv(self.features, name="conv_res1")(y)
    if self.flavor == "dec":
      x = widen(x)
    x = mp_sum(x, y, self.res_balance)
    if self.heads:
      x = mp_sum(x, self._attention(x), self.attn_balance)
    return x if self.clip_act is None else jnp.clip(x, -self.clip_act, self.clip_act)

  def _attention(self, x: Array) -> Array:
    b, height, width, c = x.shape
    check_divides("model_channels", c, self.heads, "attention heads")
    qkv = MPConv(3 * c, 1, dtype=self.dtype, name="attn_qkv")(x)
    # q, k and v innermost: EDM2's order
    qkv = normalize(qkv.reshape(b, height * width, self.heads, c // self.heads, 3), 3)
    y = attend(qkv[..., 0], qkv[..., 1], qkv[..., 2]).reshape(x.shape)
    return MPConv(c, 1, dtype=self.dtype, name="attn_proj")(y)


class EDM2UNet(Network):
  """EDM2's network for ImageNet-64 pixels and ImageNet-512 latents.

  Args:
    augment_dim: Must be 0: EDM2 has no augmentation label.
    model_channels: Width over the numbers in `channel_mult`: 192 (S), 256 (M), 320 (L), 384 (XL), 448 (XXL),
      128 (XS).
    channel_mult: Width of each level over `model_channels`.
    channel_mult_noise: Width of the Fourier embedding over `model_channels`; None: as the first level.
    channel_mult_emb: Width of the conditioning vector over `model_channels`; None: as the widest level.
    num_blocks: Residual blocks per level.
    attn_resolutions: Resolutions with self-attention.
    label_balance, concat_balance, res_balance, attn_balance: Shares of the second branch where two meet:
      label, skip connection, residual, attention.
    channels_per_head: Channels of an attention head.
    resample_filter: Separable filter of 2x resampling, of even length.
    clip_act: Clip activations to this magnitude; None: do not.
    dropout: Drop probability inside every block, in training.
    dropres: Largest resolution with dropout (ECT and sCM: 16); 0 for all.
    label_dropout: Probability of dropping the class label, in training.
    embedding_type: "fourier" (EDM2) or "positional" (sCM: steadier derivatives in time).
    modulation: How blocks are told the noise level: y s (EDM2's "scale", s from 1 on), or "double", with both
      sides brought to magnitude 1: norm(y) pnorm(s).
    Others: As in `Network`.

  Note:
    sCM trains EDM2's networks with its adaptive double normalisation; where it goes there is our reading. Its
    count of parameters leaves no room for a shift, which EDM2's blocks do not have either.

  Raises:
    UserError: A field out of range, by its name.
  """

  model_channels: int = 192
  channel_mult: tuple[int, ...] = (1, 2, 3, 4)
  channel_mult_noise: int | None = None
  channel_mult_emb: int | None = None
  num_blocks: int = 3
  attn_resolutions: tuple[int, ...] = (16, 8)
  label_balance: float = 0.5
  concat_balance: float = 0.5
  res_balance: float = 0.3
  attn_balance: float = 0.3
  channels_per_head: int = 64
  resample_filter: tuple[float, ...] = (1, 1)
  clip_act: float | None = 256.0
  dropout: float = 0.0
  dropres: int = 0
  label_dropout: float = 0.0
  embedding_type: str = "fourier"
  modulation: str = "scale"

  projection: ClassVar[Callable[[Params], Params] | None] = staticmethod(normalize_weights)
  shown_by_shapes: ClassVar[tuple[str, ...]] = ("channel_mult_noise", "channel_mult_emb")

  def __post_init__(self):
    optional = ("channel_mult_noise", "channel_mult_emb")
    given = [name for name in optional if getattr(self, name) is not None]
    fields.check_unet(self, "channels_per_head", *given, tuples=("resample_filter",))
    fields.check_taps(self)
    fields.check_choice("embedding_type", self.embedding_type, ("fourier", "positional"))
    fields.check_choice("modulation", self.modulation, ("scale", "double"))
    fields.check_absent(self, "augment_dim")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    emb = self._embed(c_noise, condition, train)
    x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(self.dtype)  # instead of biases
    skips = Scope(name="enc")(_encode, self, x, emb, train)
    x = Scope(name="dec")(_decode, self, skips, emb, train)
    gain = self.param("out_gain", nn.initializers.zeros, ())
    x = MPConv(self.out_channels, dtype=self.dtype, name="out_conv")(x, gain)
    return x.astype(layers.wide(self.dtype))

  def _embed(self, c_noise: Array, condition: Condition, train: bool) -> Array:
    """Return the conditioning vector, in at least float32."""
    dtype = layers.wide(self.dtype)
    widths = [self.model_channels * mult for mult in self.channel_mult]
    noise = widths[0] if self.channel_mult_noise is None else self.model_channels * self.channel_mult_noise
    width = max(widths) if self.channel_mult_emb is None else self.model_channels * self.channel_mult_emb
    linear = functools.partial(MPConv, width, 0, dtype.name)
    c_noise = c_noise.astype(dtype)
    if self.embedding_type == "fourier":
      emb = MPFourier(noise, name="emb_fourier")(c_noise)
    else:
      emb = positional_embedding(c_noise, noise) * 2**0.5  # cosine and sine have mean square 1/2
    emb = linear(name="emb_noise")(emb)
    if self.label_dim:
      row = conditioning.label_row(self, condition.label, c_noise.shape[0], dtype, train)
      emb = mp_sum(emb, linear(name="emb_label")(row * self.label_dim**0.5), self.label_balance)
    for name, row in conditioning.scalars(self, condition, c_noise.shape[0], noise, dtype).items():
      emb = emb + linear(name=f"emb_{name}")(row, self.param(f"{name}_gain", nn.initializers.zeros, ()))
    return mp_silu(emb)


def _block(
  net: EDM2UNet, features: int, resolution: int, attention: bool, train: bool, **options: Any
) -> nn.Module:
  return block_of(net, EDM2Block)(
    features,
    resample_filter=net.resample_filter,
    heads=features // net.channels_per_head if attention else 0,
    dropout=fields.dropout_at(net, resolution),
    res_balance=net.res_balance,
    attn_balance=net.attn_balance,
    clip_act=net.clip_act,
    double_norm=net.modulation == "double",
    train=train,
    dtype=net.dtype,
    **options,
  )


def _encode(net: EDM2UNet, x: Array, emb: Array, train: bool) -> list[Array]:
  """Return the activations of every block, top to bottom."""
  skips = []
  for level, mult in enumerate(net.channel_mult):
    resolution = net.img_resolution >> level
    prefix = f"{resolution}x{resolution}"
    if level == 0:
      x = MPConv(net.model_channels * mult, dtype=net.dtype, name=f"{prefix}_conv")(x)
    else:
      block = _block(net, x.shape[-1], resolution, False, train, resample_mode="down", name=f"{prefix}_down")
      x = block(x, emb)
    skips.append(x)
    for i in range(net.num_blocks):
      attention = resolution in net.attn_resolutions
      block = _block(net, net.model_channels * mult, resolution, attention, train, name=f"{prefix}_block{i}")
      x = block(x, emb)
      skips.append(x)
  return skips


def _decode(net: EDM2UNet, skips: list[Array], emb: Array, train: bool) -> Array:
  """Return the activation of the last block; each takes back what the encoder stored."""
  skips, x = list(skips), skips[-1]
  block = functools.partial(_block, net, flavor="dec")
  for level, mult in reversed(list(enumerate(net.channel_mult))):
    resolution = net.img_resolution >> level
    prefix = f"{resolution}x{resolution}"
    if level == len(net.channel_mult) - 1:
      x = block(x.shape[-1], resolution, True, train, name=f"{prefix}_in0")(x, emb)
      x = block(x.shape[-1], resolution, False, train, name=f"{prefix}_in1")(x, emb)
    else:
      x = block(x.shape[-1], resolution, False, train, resample_mode="up", name=f"{prefix}_up")(x, emb)
    for i in range(net.num_blocks + 1):
      attention = resolution in net.attn_resolutions
      x = mp_cat(x, skips.pop(), net.concat_balance)
      x = block(net.model_channels * mult, resolution, attention, train, name=f"{prefix}_block{i}")(x, emb)
  return x
