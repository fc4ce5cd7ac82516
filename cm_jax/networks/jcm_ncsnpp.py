"""NCSN++ as trained for the consistency models paper (openai/consistency_models_cifar10, "jcm").

A sibling of `SongUNet`, not an option of it: attention sits after a level's last decoder block, noise
frequencies are multiplied by 2 pi where they are used, and blocks are named in the order of their creation,
as in its checkpoints ("ResnetBlockBigGANpp_3/Conv_0/kernel").
"""

import collections
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.errors import UserError
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.jcm_blocks import (
  ACTIVATIONS,
  AttnBlock,
  GaussianFourierProjection,
  GroupNorm,
  Resize,
  ResnetBlock,
  Weights,
)
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition


class JcmNCSNpp(Network):
  """jcm's NCSNpp; defaults are those of its CIFAR-10 configs.

  Args:
    label_dim, augment_dim: Must be 0: it takes no labels.
    nf: Width over the numbers in `ch_mult`.
    ch_mult: Width of each level over `nf`.
    num_res_blocks: Residual blocks per level.
    attn_resolutions: Resolutions with self-attention; the lowest level has one always.
    dropout: Drop probability inside every block, in training.
    resamp_with_conv: Whether "ddpm" blocks are resampled between by a convolution.
    conditional: Whether the network sees the noise level.
    fir, fir_kernel: Resample with this filter, of even length, instead of nearest neighbours and means.
    skip_rescale: Divide sums of two branches by sqrt(2).
    resblock_type: "biggan" or "ddpm".
    progressive, progressive_input: "none", "output_skip" ("input_skip") or "residual": image pyramids beside
      the network.
    progressive_combine: "sum" or "cat": how an "input_skip" pyramid joins.
    embedding_type: "fourier" or "positional".
    fourier_scale: Standard deviation of the Fourier frequencies.
    init_scale: Initial scale of each block's last layer; 0 stands for 1e-10.
    nonlinearity: "swish", "elu", "relu" or "lrelu".
    Others: As in `Network`.

  Raises:
    UserError: A field out of range, by its name.
  """

  nf: int = 128
  ch_mult: tuple[int, ...] = (2, 2, 2)
  num_res_blocks: int = 4
  attn_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.0
  resamp_with_conv: bool = True
  conditional: bool = True
  fir: bool = True
  fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
  skip_rescale: bool = True
  resblock_type: str = "biggan"
  progressive: str = "none"
  progressive_input: str = "residual"
  progressive_combine: str = "sum"
  embedding_type: str = "fourier"
  fourier_scale: float = 16.0
  init_scale: float = 0.0
  nonlinearity: str = "swish"

  shown_by_shapes: ClassVar[tuple[str, ...]] = ("fourier_scale", "init_scale")

  def __post_init__(self):
    fields.check_network(self)
    fields.make_tuples(self, "ch_mult", "attn_resolutions", "fir_kernel")
    fields.check_positive(self, "nf", "ch_mult", "num_res_blocks")
    fields.check_rate(self, "dropout")
    fields.check_halves(self, "ch_mult", len(self.ch_mult) - 1)
    fields.check_plan(self, "nf", "ch_mult", "num_res_blocks")
    fields.check_taps(self, "fir_kernel")
    fields.check_absent(self, "label_dim", "augment_dim")
    for name, choices in {
      "resblock_type": ("biggan", "ddpm"),
      "progressive": ("none", "output_skip", "residual"),
      "progressive_input": ("none", "input_skip", "residual"),
      "progressive_combine": ("sum", "cat"),
      "embedding_type": ("fourier", "positional"),
      "nonlinearity": tuple(ACTIVATIONS),
    }.items():
      fields.check_choice(name, getattr(self, name), choices)
    if self.second_time and not self.conditional:
      raise UserError("second_time", True, "False: without `conditional` no time reaches the network")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    names = _Names(self, train)
    emb = self._embed(names, c_noise, condition)
    skips = _encode(self, names, x.astype(self.dtype), emb)
    h = names.block(skips[-1].shape[-1])(skips[-1], emb)
    h = names.block(h.shape[-1])(names.attention()(h), emb)
    return _decode(self, names, skips, h, emb).astype(layers.wide(self.dtype))

  def _embed(self, names: "_Names", c_noise: Array, condition: Condition) -> Array | None:
    """Return the conditioning vector [B, 4 nf], in at least float32, or None without conditioning."""
    dtype = layers.wide(self.dtype)
    c_noise = c_noise.astype(dtype)
    if self.embedding_type == "fourier":
      embed = GaussianFourierProjection(self.nf, self.fourier_scale, name="GaussianFourierProjection_0")
      emb = embed(c_noise)
    else:
      emb = layers.positional_embedding(c_noise, self.nf, endpoint=True)
      emb = jnp.concatenate(jnp.split(emb, 2, axis=1)[::-1], axis=1)  # sines first
    if not self.conditional:
      conditioning.UNTIL.of(self, condition, c_noise.shape[0], dtype)  # refuses one
      return None
    emb = conditioning.terms(self, emb, condition)
    linear = lambda: Weights(4 * self.nf, dtype=dtype.name, name=names.next("Dense"))
    emb = linear()(emb)
    return linear()(ACTIVATIONS[self.nonlinearity](emb))


class _Names:
  """Creates submodules with the names Flax gives the peer's: the class and a running number."""

  def __init__(self, net: JcmNCSNpp, train: bool):
    self.net, self.train, self.count = net, train, collections.Counter[str]()
    self.taps = net.fir_kernel if net.fir else None

  def next(self, kind: str) -> str:
    self.count[kind] += 1
    return f"{kind}_{self.count[kind] - 1}"

  def block(self, features: int, **options: Any) -> nn.Module:
    net, block = self.net, block_of(self.net, ResnetBlock)
    name = self.next("ResnetBlockBigGANpp" if net.resblock_type == "biggan" else "ResnetBlockDDPMpp")
    kind = (net.resblock_type, net.nonlinearity, net.dropout, self.taps or (1, 1))
    scales = (net.skip_rescale, net.init_scale)
    return block(features, *kind, *scales, **options, train=self.train, dtype=net.dtype, name=name)

  def attention(self) -> nn.Module:
    block = block_of(self.net, AttnBlock)
    return block(self.net.skip_rescale, self.net.init_scale, self.net.dtype, name=self.next("AttnBlockpp"))

  def resize(self, features: int, up: bool, with_conv: bool) -> nn.Module:
    name = self.next("Upsample" if up else "Downsample")
    return Resize(features, up, with_conv, self.taps, self.net.dtype, name=name)

  def conv(self, features: int, scale: float = 1.0) -> nn.Module:
    return Weights(features, 3, scale, dtype=self.net.dtype, name=self.next("Conv"))

  def norm_act(self, x: Array) -> Array:
    return ACTIVATIONS[self.net.nonlinearity](GroupNorm(name=self.next("GroupNorm"))(x))

  def add(self, a: Array, b: Array) -> Array:
    return (a + b) * (math.sqrt(0.5) if self.net.skip_rescale else 1.0)


def _encode(net: JcmNCSNpp, names: _Names, x: Array, emb: Array | None) -> list[Array]:
  """Return the activations of every block, top to bottom; `image` is the input pyramid."""
  image, skips = x, [names.conv(net.nf)(x)]
  for level, mult in enumerate(net.ch_mult):
    for _ in range(net.num_res_blocks):
      h = names.block(net.nf * mult)(skips[-1], emb)
      skips.append(names.attention()(h) if net.img_resolution >> level in net.attn_resolutions else h)
    if level == len(net.ch_mult) - 1:
      continue
    h = skips[-1]
    if net.resblock_type == "ddpm":
      h = names.resize(h.shape[-1], False, net.resamp_with_conv)(h)
    else:
      h = names.block(h.shape[-1], down=True)(h, emb)
    if net.progressive_input == "input_skip":
      image = names.resize(image.shape[-1], False, False)(image)
      widen = lambda a, features: Weights(features, 1, dtype=net.dtype, name="Conv_0")(a)
      joined = layers.Scope(name=names.next("Combine"))(widen, image, h.shape[-1])
      h = joined + h if net.progressive_combine == "sum" else jnp.concatenate([joined, h], axis=-1)
    elif net.progressive_input == "residual":
      h = image = names.add(names.resize(h.shape[-1], False, True)(image), h)
    skips.append(h)
  return skips


def _decode(net: JcmNCSNpp, names: _Names, skips: list[Array], h: Array, emb: Array | None) -> Array:
  """Return the output image; `image` is the output pyramid."""
  skips = list(skips)
  image: Array | None = None
  for level, mult in reversed(list(enumerate(net.ch_mult))):
    for _ in range(net.num_res_blocks + 1):
      h = names.block(net.nf * mult)(jnp.concatenate([h, skips.pop()], axis=-1), emb)
    if net.img_resolution >> level in net.attn_resolutions:
      h = names.attention()(h)
    if net.progressive == "output_skip":
      if image is not None:
        image = names.resize(image.shape[-1], True, False)(image)
      rendered = names.conv(net.out_channels, net.init_scale)(names.norm_act(h))
      image = rendered if image is None else image + rendered
    elif net.progressive == "residual":
      if image is None:
        image = names.conv(h.shape[-1])(names.norm_act(h))
      else:
        h = image = names.add(names.resize(h.shape[-1], True, True)(image), h)
    if level and net.resblock_type == "ddpm":
      h = names.resize(h.shape[-1], True, net.resamp_with_conv)(h)
    elif level:
      h = names.block(h.shape[-1], up=True)(h, emb)
  if net.progressive == "output_skip" and image is not None:
    return image
  return names.conv(net.out_channels, net.init_scale)(names.norm_act(h))
