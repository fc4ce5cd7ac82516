"""DiT, the diffusion transformer with adaLN-Zero conditioning (Peebles and Xie 2023), for latents and pixels.

Submodules and parameters are named as in the authors' checkpoints ("blocks.0.attn.qkv.weight").
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.errors import UserError
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.layers import Embedding, Init, Linear, Scope, attend
from cm_jax.networks.module import Module
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition

INIT = Init("xavier_uniform")
INIT_ZERO = Init("xavier_uniform", 0.0)
INIT_SMALL = Init("unit_normal", 0.02)
FREQUENCY_CHANNELS = 256


def grid_embedding(side: int, channels: int) -> np.ndarray:
  """Return the fixed embedding [side * side, channels] of patch positions.

  A quarter each of sin and cos of the column, then of the row.

  >>> grid_embedding(2, 4)[0].tolist()
  [0.0, 1.0, 0.0, 1.0]
  """
  freqs = 1 / 10000 ** (np.arange(channels // 4) / (channels // 4))
  row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
  phases = [axis.reshape(-1, 1) * freqs for axis in (column, row)]
  return np.concatenate([f(phase) for phase in phases for f in (np.sin, np.cos)], axis=1)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
  """Normalise over channels, without parameters, in at least float32."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  centred = wide - wide.mean(-1, keepdims=True)
  return (centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
  """Shift and scale x [B, positions, C] by [B, C] each."""
  return x * (1 + scale[:, None, :]) + shift[:, None, :]


class Modulation(Module):
  """Map the conditioning vector to shifts, scales and gates, in at least float32; they come as `dtype`."""

  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, emb: Array) -> Array:
    linear = Linear(self.features, INIT_ZERO, dtype=layers.wide(self.dtype).name, name="1")
    return linear(nn.silu(emb)).astype(self.dtype)


class DiTBlock(Module):
  """Transformer block, its norms and branches modulated by the conditioning vector; the identity at first."""

  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  train: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, emb: Array) -> Array:
    c = x.shape[-1]
    linear = functools.partial(Linear, dtype=self.dtype)
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    modulation = Modulation(6 * c, self.dtype, name="adaLN_modulation")(emb)
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)

    def attention(h: Array) -> Array:
      b, n, _ = h.shape
      qkv = linear(3 * c, INIT, name="qkv")(h).reshape(b, n, 3 * self.heads, c // self.heads)
      q, k, v = jnp.split(qkv, 3, axis=2)
      return linear(c, INIT, name="proj")(attend(q, k, v).reshape(h.shape))

    def mlp(h: Array) -> Array:
      h = nn.gelu(linear(int(c * self.mlp_ratio), INIT, name="fc1")(h), approximate=True)
      return linear(c, INIT, name="fc2")(h)

    x = x + gate1[:, None, :] * drop(Scope(name="attn")(attention, modulate(layer_norm(x), shift1, scale1)))
    return x + gate2[:, None, :] * drop(Scope(name="mlp")(mlp, modulate(layer_norm(x), shift2, scale2)))


class Patches(Module):
  """Map each patch of x [B,H,W,C], row by row, to a token [B, positions, features].

  The weight is [patch, patch, C, features].
  """

  features: int
  size: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, h, w, c = x.shape
    p, flat = self.size, self.size**2 * c
    draw = lambda key, shape: INIT.weight(key, (flat, self.features)).reshape(shape)
    weight = self.param("weight", draw, (p, p, c, self.features)).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
    patches = jnp.moveaxis(x.astype(self.dtype).reshape(b, h // p, p, w // p, p, c), 3, 2)
    return patches.reshape(b, -1, flat) @ weight.reshape(flat, self.features) + bias[None, None, :]


class DiT(Network):
  """DiT; S, B, L, XL have hidden sizes 384, 768, 1024, 1152, depths 12, 12, 24, 28 and 6, 12, 16, 16 heads.

  Args:
    label_dim: Number of classes; "no label" is a learned class of its own. 0 for an unconditional network.
    augment_dim: Must be 0: it takes no augmentation label.
    patch_size: Pixels along a side of a patch, which is one token.
    hidden_size: Width.
    depth: Number of blocks.
    num_heads: Attention heads.
    mlp_ratio: Width of the MLP over `hidden_size`.
    dropout: Drop probability of each residual branch, in training (the paper: 0).
    label_dropout: Probability of dropping the class label, in training (the paper: 0.1).
    Others: As in `Network`.

  Raises:
    UserError: A field out of range, by its name.
  """

  patch_size: int = 2
  hidden_size: int = 384
  depth: int = 12
  num_heads: int = 6
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  label_dropout: float = 0.1

  def __post_init__(self):
    fields.check_network(self)
    fields.check_positive(self, "patch_size", "hidden_size", "depth", "num_heads")
    if self.depth > fields.MAX_BLOCKS:
      raise UserError("depth", self.depth, f"at most {fields.MAX_BLOCKS} blocks")
    fields.check_rate(self, "dropout", "label_dropout")
    fields.check_absent(self, "augment_dim")
    if self.img_resolution % self.patch_size:
      raise UserError("patch_size", self.patch_size, f"a divisor of the {self.img_resolution} pixels")
    if self.hidden_size % math.lcm(4, self.num_heads):
      raise UserError("hidden_size", self.hidden_size, f"a multiple of 4 and of the {self.num_heads} heads")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    b, p, side = x.shape[0], self.patch_size, self.img_resolution // self.patch_size
    emb = self._embed(c_noise, condition, train)
    tokens = Scope(name="x_embedder")(lambda x: Patches(self.hidden_size, p, self.dtype, name="proj")(x), x)
    tokens = tokens + jnp.asarray(grid_embedding(side, self.hidden_size), tokens.dtype)[None]
    kind = block_of(self, DiTBlock)
    block = functools.partial(kind, self.num_heads, self.mlp_ratio, self.dropout, train, self.dtype)

    def blocks(h: Array) -> Array:
      for i in range(self.depth):
        h = block(name=str(i))(h, emb)
      return h

    def final_layer(h: Array) -> Array:
      linear = functools.partial(Linear, initial=INIT_ZERO, dtype=self.dtype)
      modulation = Modulation(2 * self.hidden_size, self.dtype, name="adaLN_modulation")(emb)
      shift, scale = jnp.split(modulation, 2, axis=-1)
      return linear(p * p * self.out_channels, name="linear")(modulate(layer_norm(h), shift, scale))

    patches = Scope(name="final_layer")(final_layer, Scope(name="blocks")(blocks, tokens))
    image = jnp.moveaxis(patches.reshape(b, side, side, p, p, self.out_channels), 2, 3)
    return image.reshape(b, side * p, side * p, self.out_channels).astype(layers.wide(self.dtype))

  def _embed(self, c_noise: Array, condition: Condition, train: bool) -> Array:
    """Return the conditioning vector [B, hidden_size], in at least float32."""
    dtype, batch = layers.wide(self.dtype), c_noise.shape[0]
    linear = functools.partial(Linear, self.hidden_size, INIT_SMALL, dtype=dtype.name)

    def mlp(emb: Array) -> Array:
      return linear(name="2")(nn.silu(linear(name="0")(emb)))

    emb = layers.positional_embedding(c_noise.astype(dtype), FREQUENCY_CHANNELS)
    emb = Scope(name="t_embedder")(lambda emb: Scope(name="mlp")(mlp, emb), emb)
    emb = conditioning.terms(self, emb, condition)
    if not self.label_dim:
      return emb
    none = jnp.full((batch,), self.label_dim, jnp.int32)  # the last row of the table
    label = none if condition.label is None else jnp.where(condition.label < 0, none, condition.label)
    if train and self.label_dropout:
      hide = jax.random.bernoulli(self.make_rng("dropout"), self.label_dropout, (batch,))
      label = jnp.where(hide, none, label)
    table = lambda row: Embedding(self.hidden_size, INIT_SMALL.gain, name="embedding_table")(row)
    return emb + Scope(name="y_embedder")(table, jax.nn.one_hot(label, self.label_dim + 1, dtype=dtype))
