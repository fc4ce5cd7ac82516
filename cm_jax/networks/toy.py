"""The smallest network that has everything the others have: two 3x3 convolutions, for tests and checks."""

import functools

import flax.linen as nn

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.base import Network
from cm_jax.networks.layers import Conv, Linear
from cm_jax.networks.remat import block_of
from cm_jax.types import Array, Condition


class ToyNet(Network):
  """F = conv2(silu(conv1(x) + affine(c_noise) + what else it is told)).

  350 parameters at width 8 and one channel.

  Args:
    width: Number of hidden channels.
    dropout: Drop probability between the convolutions, in training.
    Others: As in `Network`.

  Raises:
    UserError: A field out of range, by its name.
  """

  width: int = 8
  dropout: float = 0.0

  def __post_init__(self):
    fields.check_network(self)
    fields.check_positive(self, "width")
    fields.check_rate(self, "dropout")
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: Array, c_noise: Array, condition: Condition = NOTHING, *, train: bool = False
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    dtype = layers.wide(self.dtype)
    emb = Linear(self.width, use_bias=False, dtype=dtype.name, name="affine")(c_noise[:, None])
    if self.label_dim:
      row = conditioning.one_hot(condition.label, self.label_dim, c_noise.shape[0], dtype)
      emb = emb + Linear(self.width, use_bias=False, dtype=dtype.name, name="map_label")(row)
    emb = conditioning.terms(self, emb, condition)
    conv = functools.partial(block_of(self, Conv), dtype=self.dtype)
    h = nn.silu(conv(self.width, name="conv1")(x) + emb.astype(self.dtype)[:, None, None, :])
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    return conv(self.out_channels, name="conv2")(h).astype(dtype)
