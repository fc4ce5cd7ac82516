"""OpenAI's UNet of the ImageNet-64 and LSUN checkpoints (openai/consistency_models, from guided-diffusion).

Submodules and parameters are named as in those checkpoints ("input_blocks.1.0.in_layers.2.weight").
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.errors import UserError
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.layers import Embedding, Init, Linear, Scope, attend, check_divides, resample
from cm_jax.networks.module import Module
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition

INIT = Init("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))
INIT_ZERO = Init("kaiming_uniform", 0.0)
Conv = functools.partial(layers.Conv, initial=INIT)
GroupNorm = functools.partial(layers.GroupNorm, min_channels=1)

Step = Callable[[str, Array], Array]  # (name, x) -> x: creates the submodule under this name


class ResBlock(Module):
  """Residual block with noise-level conditioning and optional 2x resampling."""

  features: int
  up: bool = False
  down: bool = False
  dropout: float = 0.0
  use_scale_shift_norm: bool = False
  train: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, emb: Array) -> Array:
    resized = functools.partial(resample, up=self.up, down=self.down)

    def in_layers(h: Array) -> Array:
      return Conv(self.features, dtype=self.dtype, name="2")(resized(GroupNorm(silu=True, name="0")(h)))

    def emb_layers(emb: Array) -> Array:
      width = self.features * (2 if self.use_scale_shift_norm else 1)
      affine = Linear(width, INIT, dtype=layers.wide(self.dtype).name, name="1")(nn.silu(emb))
      return affine.astype(self.dtype)[:, None, None, :]

    def out_layers(h: Array, emb: Array) -> Array:
      norm = GroupNorm(name="0")
      if self.use_scale_shift_norm:
        scale, shift = jnp.split(emb, 2, axis=-1)
        h = norm(h) * (1 + scale) + shift
      else:
        h = norm(h + emb)
      h = nn.Dropout(self.dropout, deterministic=not self.train)(nn.silu(h))
      return Conv(self.features, initial=INIT_ZERO, dtype=self.dtype, name="3")(h)

    h = Scope(name="in_layers")(in_layers, x)
    h = Scope(name="out_layers")(out_layers, h, Scope(name="emb_layers")(emb_layers, emb))
    x = resized(x)
    if x.shape[-1] != self.features:
      x = Conv(self.features, 1, dtype=self.dtype, name="skip_connection")(x)
    return h + x


class AttentionBlock(Module):
  """Residual self-attention; q, k and v are outermost in the channels, heads inside them."""

  heads: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, height, width, c = x.shape
    check_divides("model_channels", c, self.heads, "attention heads")
    qkv = Conv(3 * c, 1, dtype=self.dtype, name="qkv")(GroupNorm(name="norm")(x))
    q, k, v = jnp.split(qkv.reshape(b, height * width, 3 * self.heads, c // self.heads), 3, axis=2)
    project = Conv(c, 1, initial=INIT_ZERO, dtype=self.dtype, name="proj_out")
    return x + project(attend(q, k, v).reshape(x.shape))


class OpenAIUNet(Network):
  """OpenAI's UNetModel.

  Args:
    augment_dim: Must be 0: it has no augmentation label.
    model_channels: Width over the numbers in `channel_mult`; every width is a multiple of 32.
    num_res_blocks: Residual blocks per level.
    attention_resolutions: Where to attend, as downsampling factors: (2, 4, 8) of 64 pixels means at 32, 16
      and 8.
    dropout: Drop probability inside every block, in training.
    channel_mult: Width of each level over `model_channels`.
    conv_resample: Resample by a convolution where `resblock_updown` is off.
    num_heads, num_head_channels: Heads of each attention, or channels per head where that is not -1.
    num_heads_upsample: Heads in the decoder; -1: as in the encoder.
    use_scale_shift_norm: Condition by scale and shift after the norm, not by a shift before it.
    resblock_updown: Resample by residual blocks.
    label_dropout: Probability of dropping the class label, in training.
    Others: As in `Network`.

  Raises:
    UserError: A field out of range, by its name.
  """

  model_channels: int = 192
  num_res_blocks: int = 3
  attention_resolutions: tuple[int, ...] = (2, 4, 8)
  dropout: float = 0.0
  channel_mult: tuple[int, ...] = (1, 2, 3, 4)
  conv_resample: bool = True
  num_heads: int = 1
  num_head_channels: int = -1
  num_heads_upsample: int = -1
  use_scale_shift_norm: bool = False
  resblock_updown: bool = False
  label_dropout: float = 0.0

  def __post_init__(self):
    fields.check_network(self)
    fields.make_tuples(self, "channel_mult", "attention_resolutions")
    fields.check_positive(self, "model_channels", "channel_mult", "num_res_blocks")
    for name in ("num_heads", "num_head_channels", "num_heads_upsample"):
      if getattr(self, name) != -1 or name == "num_heads":
        fields.check_positive(self, name)
    fields.check_rate(self, "dropout", "label_dropout")
    fields.check_halves(self, "channel_mult", len(self.channel_mult) - 1)
    fields.check_plan(self, "model_channels", "channel_mult", "num_res_blocks")
    fields.check_absent(self, "augment_dim")
    if self.model_channels % 32:
      raise UserError("model_channels", self.model_channels, "a multiple of 32, the number of norm groups")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B], a time of up to about 1000) -> [B,H,W,out_channels] float32."""
    dtype, channels = layers.wide(self.dtype), self.model_channels
    emb = layers.positional_embedding(c_noise.astype(dtype), channels)
    emb = conditioning.terms(self, emb, condition)
    linear = functools.partial(Linear, 4 * channels, INIT, dtype=dtype.name)
    emb = Scope(name="time_embed")(lambda emb: linear(name="2")(nn.silu(linear(name="0")(emb))), emb)
    if self.label_dim:
      row = conditioning.label_row(self, condition.label, c_noise.shape[0], dtype, train)
      emb = emb + Embedding(4 * channels, name="label_emb")(row)
    skips = Scope(name="input_blocks")(_encode, self, x.astype(self.dtype), emb, train)
    middle = [_res(self, emb, train), _attention(self, self.num_heads), _res(self, emb, train)]
    x = _run("middle_block", middle, skips[-1])
    x = Scope(name="output_blocks")(_decode, self, skips, x, emb, train)
    steps = [
      lambda name, x: GroupNorm(silu=True, name=name)(x),
      lambda _, x: x,
      lambda name, x: Conv(self.out_channels, initial=INIT_ZERO, dtype=self.dtype, name=name)(x),
    ]
    return _run("out", steps, x).astype(dtype)


def _run(name: str, steps: Sequence[Step], x: Array) -> Array:
  """Apply the steps in turn, as submodules "NAME.0", "NAME.1", ..."""

  def body(x: Array) -> Array:
    for i, step in enumerate(steps):
      x = step(str(i), x)
    return x

  return Scope(name=name)(body, x)


def _res(net: OpenAIUNet, emb: Array, train: bool, features: int | None = None, **options: Any) -> Step:
  block = block_of(net, ResBlock)
  options.update(dropout=net.dropout, use_scale_shift_norm=net.use_scale_shift_norm)
  options.update(train=train, dtype=net.dtype)
  return lambda name, x: block(features or x.shape[-1], **options, name=name)(x, emb)


def _attention(net: OpenAIUNet, heads: int) -> Step:
  block = block_of(net, AttentionBlock)
  count = lambda channels: heads if net.num_head_channels == -1 else max(1, channels // net.num_head_channels)
  return lambda name, x: block(count(x.shape[-1]), net.dtype, name=name)(x)


def _resize(net: OpenAIUNet, emb: Array, train: bool, *, up: bool = False) -> Step:
  """Halve or double the image by a residual block, a convolution or neither."""
  if net.resblock_updown:
    return _res(net, emb, train, up=up, down=not up)
  if not net.conv_resample:
    return lambda _, x: resample(x, up=up, down=not up)
  conv = functools.partial(Conv, up=up, stride=1 if up else 2, dtype=net.dtype, name="conv" if up else "op")
  return lambda name, x: Scope(name=name)(lambda x: conv(x.shape[-1])(x), x)


def _encode(net: OpenAIUNet, x: Array, emb: Array, train: bool) -> list[Array]:
  """Return the activations of every block, top to bottom."""
  stem: Step = lambda name, x: Conv(net.channel_mult[0] * net.model_channels, dtype=net.dtype, name=name)(x)
  plan: list[list[Step]] = [[stem]]
  for level, mult in enumerate(net.channel_mult):
    for _ in range(net.num_res_blocks):
      attend_here = [_attention(net, net.num_heads)] if 2**level in net.attention_resolutions else []
      plan.append([_res(net, emb, train, mult * net.model_channels), *attend_here])
    if level < len(net.channel_mult) - 1:
      plan.append([_resize(net, emb, train)])
  skips: list[Array] = []
  for i, steps in enumerate(plan):
    x = _run(str(i), steps, x)
    skips.append(x)
  return skips


def _decode(net: OpenAIUNet, skips: list[Array], x: Array, emb: Array, train: bool) -> Array:
  """Return the activation of the last block; each takes back what the encoder stored."""
  heads = net.num_heads if net.num_heads_upsample == -1 else net.num_heads_upsample
  plan: list[list[Step]] = []
  for level, mult in reversed(list(enumerate(net.channel_mult))):
    for i in range(net.num_res_blocks + 1):
      attend_here = [_attention(net, heads)] if 2**level in net.attention_resolutions else []
      resize = [_resize(net, emb, train, up=True)] if level and i == net.num_res_blocks else []
      plan.append([_res(net, emb, train, mult * net.model_channels), *attend_here, *resize])
  for i, (steps, skip) in enumerate(zip(plan, reversed(skips), strict=True)):
    x = _run(str(i), steps, jnp.concatenate([x, skip], axis=-1))
  return x
