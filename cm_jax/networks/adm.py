"""DhariwalUNet: ADM (Dhariwal and Nichol 2021) as re-implemented by EDM (Karras et al. 2022, table 7).

Submodules and parameters are named as in EDM's checkpoints ("dec.8x8_block0.affine.weight").
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.blocks import MODULATIONS, UNetBlock
from cm_jax.networks.layers import Conv, GroupNorm, Init, Linear, Scope
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition

INIT = Init("kaiming_uniform", math.sqrt(1 / 3), math.sqrt(1 / 3))
INIT_ZERO = Init("kaiming_uniform", 0.0)
CHANNELS_PER_HEAD = 64


class DhariwalUNet(Network):
  """ADM, EDM's network for ImageNet-64.

  Args:
    model_channels: Width over the numbers in `channel_mult`.
    channel_mult: Width of each level over `model_channels`.
    channel_mult_emb: Width of the conditioning vector over `model_channels`.
    num_blocks: Residual blocks per level.
    attn_resolutions: Resolutions with self-attention, one head per 64 channels, so none in narrower blocks.
    dropout: Drop probability inside every block, in training.
    dropres: Largest resolution with dropout (iCT and sCM: 16); 0 for all.
    label_dropout: Probability of dropping the class label, in training.
    modulation: How blocks are told the noise level, of `MODULATIONS`: "scale_shift" (ADM's AdaGN), "shift"
      (iCT, which diverges with AdaGN), "double" (sCM).
    Others: As in `Network`.

  Raises:
    UserError: A field out of range, by its name.
  """

  model_channels: int = 192
  channel_mult: tuple[int, ...] = (1, 2, 3, 4)
  channel_mult_emb: int = 4
  num_blocks: int = 3
  attn_resolutions: tuple[int, ...] = (32, 16, 8)
  dropout: float = 0.10
  dropres: int = 0
  label_dropout: float = 0.0
  modulation: str = "scale_shift"

  def __post_init__(self):
    fields.check_unet(self, "channel_mult_emb")
    fields.check_choice("modulation", self.modulation, tuple(MODULATIONS))
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    emb = self._embed(c_noise, condition, train)
    skips = Scope(name="enc")(_encode, self, x.astype(self.dtype), emb, train)
    x = Scope(name="dec")(_decode, self, skips, emb, train)
    x = GroupNorm(silu=True, name="out_norm")(x)
    x = Conv(self.out_channels, initial=INIT_ZERO, dtype=self.dtype, name="out_conv")(x)
    return x.astype(layers.wide(self.dtype))

  def _embed(self, c_noise: Array, condition: Condition, train: bool) -> Array:
    """Return the conditioning vector [B, model_channels * channel_mult_emb], in at least float32."""
    dtype = layers.wide(self.dtype)
    linear = functools.partial(Linear, self.model_channels * self.channel_mult_emb, dtype=dtype.name)
    emb = layers.positional_embedding(c_noise.astype(dtype), self.model_channels)
    emb = conditioning.terms(self, emb, condition, INIT_ZERO)
    emb = linear(INIT, name="map_layer1")(nn.silu(linear(INIT, name="map_layer0")(emb)))
    if self.label_dim:
      row = conditioning.label_row(self, condition.label, c_noise.shape[0], dtype, train)
      initial = Init("kaiming_normal", math.sqrt(self.label_dim))
      emb = emb + linear(initial, use_bias=False, name="map_label")(row)
    return nn.silu(emb)


def _block(
  net: DhariwalUNet, features: int, resolution: int, attention: bool, train: bool, **options: Any
) -> nn.Module:
  return block_of(net, UNetBlock)(
    features,
    heads=features // CHANNELS_PER_HEAD if attention else 0,
    dropout=fields.dropout_at(net, resolution),
    initial=INIT,
    initial_zero=INIT_ZERO,
    initial_attention=INIT,
    train=train,
    dtype=net.dtype,
    **MODULATIONS[net.modulation],
    **options,
  )


def _encode(net: DhariwalUNet, x: Array, emb: Array, train: bool) -> list[Array]:
  """Return the activations of every block, top to bottom."""
  skips = []
  for level, mult in enumerate(net.channel_mult):
    resolution = net.img_resolution >> level
    prefix = f"{resolution}x{resolution}"
    if level == 0:
      x = Conv(net.model_channels * mult, initial=INIT, dtype=net.dtype, name=f"{prefix}_conv")(x)
    else:
      x = _block(net, x.shape[-1], resolution, False, train, down=True, name=f"{prefix}_down")(x, emb)
    skips.append(x)
    for i in range(net.num_blocks):
      attention = resolution in net.attn_resolutions
      block = _block(net, net.model_channels * mult, resolution, attention, train, name=f"{prefix}_block{i}")
      x = block(x, emb)
      skips.append(x)
  return skips


def _decode(net: DhariwalUNet, skips: list[Array], emb: Array, train: bool) -> Array:
  """Return the activation of the last block; each takes back what the encoder stored."""
  skips, x = list(skips), skips[-1]
  for level, mult in reversed(list(enumerate(net.channel_mult))):
    resolution = net.img_resolution >> level
    prefix = f"{resolution}x{resolution}"
    if level == len(net.channel_mult) - 1:
      x = _block(net, x.shape[-1], resolution, True, train, name=f"{prefix}_in0")(x, emb)
      x = _block(net, x.shape[-1], resolution, False, train, name=f"{prefix}_in1")(x, emb)
    else:
      x = _block(net, x.shape[-1], resolution, False, train, up=True, name=f"{prefix}_up")(x, emb)
    for i in range(net.num_blocks + 1):
      attention = resolution in net.attn_resolutions
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      block = _block(net, net.model_channels * mult, resolution, attention, train, name=f"{prefix}_block{i}")
      x = block(x, emb)
  return x
