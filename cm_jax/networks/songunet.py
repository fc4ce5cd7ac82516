"""SongUNet: DDPM++ and NCSN++ (Song et al. 2021) as re-implemented by EDM (Karras et al. 2022, table 7).

Submodules and parameters are named as in EDM's and ECT's checkpoints ("enc.16x16_block0.norm0.weight").
"""

import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.errors import UserError
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.blocks import MODULATIONS, UNetBlock
from cm_jax.networks.layers import Conv, FourierEmbedding, GroupNorm, Init, Linear, Scope
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition

INIT = Init("xavier_uniform")
INIT_ZERO = Init("xavier_uniform", 1e-5)
BLOCK: dict[str, Any] = {
  "skip_scale": math.sqrt(0.5),
  "eps": 1e-6,
  "resample_proj": True,
  "initial": INIT,
  "initial_zero": INIT_ZERO,
  "initial_attention": Init("xavier_uniform", math.sqrt(0.2)),
}


class SongUNet(Network):
  """DDPM++ and NCSN++.

  DDPM++ has `embedding_type`, `encoder_type`, `decoder_type` and `resample_filter` "positional", "standard",
  "standard", (1, 1); NCSN++ "fourier", "residual", "standard", (1, 3, 3, 1).

  Args:
    model_channels: Width of the first level.
    channel_mult: Width of each level over `model_channels`.
    channel_mult_emb: Width of the conditioning vector over `model_channels`.
    num_blocks: Residual blocks per level.
    attn_resolutions: Resolutions with self-attention; the lowest level of the decoder has one always.
    dropout: Drop probability inside every block, in training.
    label_dropout: Probability of dropping the class label, in training.
    embedding_type: "positional" (DDPM++) or "fourier" (NCSN++) noise-level embedding.
    channel_mult_noise: Width of that embedding over `model_channels`: 1 for DDPM++, 2 for NCSN++.
    fourier_scale: Standard deviation of the Fourier frequencies: 16 (EDM), 0.02 (iCT, ECT).
    encoder_type: "standard" (DDPM++), "residual" (NCSN++) or "skip": how the image itself reaches lower
      levels.
    decoder_type: "standard" or "skip": whether every level adds to the output image.
    resample_filter: Separable filter of 2x resampling, of even length.
    modulation: How blocks are told the noise level, of `MODULATIONS`: "shift" (DDPM++ and NCSN++) or "double"
      (sCM), for one; "scale_shift" is ADM's.
    Others: As in `Network`.

  Raises:
    UserError: A field out of range, by its name.
  """

  model_channels: int = 128
  channel_mult: tuple[int, ...] = (1, 2, 2, 2)
  channel_mult_emb: int = 4
  num_blocks: int = 4
  attn_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.10
  label_dropout: float = 0.0
  embedding_type: str = "positional"
  channel_mult_noise: int = 1
  fourier_scale: float = 16.0
  encoder_type: str = "standard"
  decoder_type: str = "standard"
  resample_filter: tuple[float, ...] = (1, 1)
  modulation: str = "shift"

  shown_by_shapes: ClassVar[tuple[str, ...]] = ("fourier_scale",)

  def __post_init__(self):
    fields.check_unet(self, "channel_mult_emb", "channel_mult_noise", tuples=("resample_filter",))
    fields.check_choice("embedding_type", self.embedding_type, ("positional", "fourier"))
    fields.check_choice("encoder_type", self.encoder_type, ("standard", "skip", "residual"))
    fields.check_choice("decoder_type", self.decoder_type, ("standard", "skip"))
    fields.check_choice("modulation", self.modulation, tuple(MODULATIONS))
    fields.check_taps(self)
    if self.model_channels * self.channel_mult_noise % 2:  # the embedding has as many sines as cosines
      raise UserError("model_channels", self.model_channels, "an even number (or an even channel_mult_noise)")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    options: dict[str, Any] = {"dropout": self.dropout, "resample_filter": self.resample_filter}
    options |= MODULATIONS[self.modulation]
    kind = block_of(self, UNetBlock)
    block = functools.partial(kind, **BLOCK, **options, train=train, dtype=self.dtype)
    emb = self._embed(c_noise, condition, train)
    skips = Scope(name="enc")(_encode, self, block, x.astype(self.dtype), emb)
    return Scope(name="dec")(_decode, self, block, skips, emb).astype(layers.wide(self.dtype))

  def _embed(self, c_noise: Array, condition: Condition, train: bool) -> Array:
    """Return the conditioning vector [B, model_channels * channel_mult_emb], in at least float32."""
    dtype = layers.wide(self.dtype)
    linear = functools.partial(Linear, initial=INIT, dtype=dtype.name)
    width = self.model_channels * self.channel_mult_noise
    c_noise = c_noise.astype(dtype)
    if self.embedding_type == "fourier":
      emb = FourierEmbedding(width, self.fourier_scale, name="map_noise")(c_noise)
    else:
      emb = layers.positional_embedding(c_noise, width, endpoint=True)
    emb = jnp.concatenate(jnp.split(emb, 2, axis=1)[::-1], axis=1)  # sines first, as in DDPM
    if self.label_dim:
      row = conditioning.label_row(self, condition.label, c_noise.shape[0], dtype, train)
      emb = emb + linear(width, name="map_label")(row * math.sqrt(self.label_dim))
    emb = conditioning.terms(self, emb, condition, INIT)
    emb = nn.silu(linear(self.model_channels * self.channel_mult_emb, name="map_layer0")(emb))
    return nn.silu(linear(self.model_channels * self.channel_mult_emb, name="map_layer1")(emb))


def _encode(net: SongUNet, block, x: Array, emb: Array) -> list[Array]:
  """Return the activations of every block, top to bottom; `aux` carries the image down."""
  conv = functools.partial(Conv, initial=INIT, dtype=net.dtype)
  resampling: dict[str, Any] = {"down": True, "resample_filter": net.resample_filter}
  aux, skips = x, []
  for level, mult in enumerate(net.channel_mult):
    resolution = net.img_resolution >> level
    prefix = f"{resolution}x{resolution}"
    if level == 0:
      x = conv(net.model_channels, name=f"{prefix}_conv")(x)
    else:
      x = block(x.shape[-1], down=True, name=f"{prefix}_down")(x, emb)
      if net.encoder_type == "skip":
        aux = layers.resample(aux, **resampling)
        x = x + conv(x.shape[-1], 1, name=f"{prefix}_aux_skip")(aux)
      elif net.encoder_type == "residual":
        residual = conv(x.shape[-1], **resampling, fused=True, name=f"{prefix}_aux_residual")
        aux = x = (x + residual(aux)) * math.sqrt(0.5)
    skips.append(x)
    for i in range(net.num_blocks):
      heads = int(resolution in net.attn_resolutions)
      x = block(net.model_channels * mult, heads=heads, name=f"{prefix}_block{i}")(x, emb)
      skips.append(x)
  return skips


def _decode(net: SongUNet, block, skips: list[Array], emb: Array) -> Array:
  """Return the image that the blocks, taking back what the encoder stored, lead to."""
  skips, x = list(skips), skips[-1]
  image: Array | None = None
  for level, mult in reversed(list(enumerate(net.channel_mult))):
    resolution = net.img_resolution >> level
    prefix = f"{resolution}x{resolution}"
    if level == len(net.channel_mult) - 1:
      x = block(x.shape[-1], heads=1, name=f"{prefix}_in0")(x, emb)
      x = block(x.shape[-1], name=f"{prefix}_in1")(x, emb)
    else:
      x = block(x.shape[-1], up=True, name=f"{prefix}_up")(x, emb)
    for i in range(net.num_blocks + 1):
      heads = int(i == net.num_blocks and resolution in net.attn_resolutions)
      x = jnp.concatenate([x, skips.pop()], -1)
      x = block(net.model_channels * mult, heads=heads, name=f"{prefix}_block{i}")(x, emb)
    if net.decoder_type == "skip" or level == 0:
      h = GroupNorm(1e-6, silu=True, name=f"{prefix}_aux_norm")(x)
      h = Conv(net.out_channels, initial=INIT_ZERO, dtype=net.dtype, name=f"{prefix}_aux_conv")(h)
      image = h if image is None else h + layers.upsample(image, net.resample_filter)
  assert image is not None
  return image
