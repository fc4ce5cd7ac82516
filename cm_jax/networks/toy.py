"""The smallest network that has everything the others have: two 3x3 convolutions, for tests and closed-form checks."""

import functools

import flax.linen as nn

from cm_jax.networks import conditioning, fields, layers
from cm_jax.networks.layers import Conv, Init, Linear
from cm_jax.types import Array


class ToyNet(nn.Module):
  """F = conv2(silu(conv1(x) + affine(c_noise) + label and augmentation terms)); 350 parameters at width 8 and one channel.

  Args: as for SongUNet; `width` is the number of hidden channels.
  """

  img_resolution: int
  in_channels: int
  out_channels: int
  label_dim: int = 0
  augment_dim: int = 0
  width: int = 8
  dropout: float = 0.0
  guidance_embedding: bool = False
  dtype: str = "float32"
  remat: bool = False

  def __post_init__(self):
    fields.check_positive(self, "img_resolution", "in_channels", "out_channels", "width")
    fields.check_rate(self, "dropout")
    fields.check_choice("dtype", self.dtype, fields.DTYPES)
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    x: Array,
    c_noise: Array,
    *,
    label: Array | None = None,
    augment_label: Array | None = None,
    guidance: Array | None = None,
    train: bool = False,
  ) -> Array:
    """Evaluate F(x [B,H,W,C], c_noise [B]) -> [B,H,W,out_channels] float32."""
    dtype, batch = layers.wide(self.dtype), c_noise.shape[0]
    emb = Linear(self.width, use_bias=False, dtype=dtype.name, name="affine")(c_noise[:, None])
    if self.label_dim:
      row = conditioning.one_hot(label, self.label_dim, batch, dtype)
      emb = emb + Linear(self.width, use_bias=False, dtype=dtype.name, name="map_label")(row)
    emb = emb + conditioning.augment_term(self, augment_label, self.width, Init("xavier_uniform"), dtype)
    emb = emb + conditioning.guidance_term(self, guidance, self.width, batch, dtype)
    conv = functools.partial(nn.remat(Conv) if self.remat else Conv, dtype=self.dtype)
    h = nn.silu(conv(self.width, name="conv1")(x) + emb.astype(self.dtype)[:, None, None, :])
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    return conv(self.out_channels, name="conv2")(h).astype(dtype)
