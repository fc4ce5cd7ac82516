"""A small residual classifier: its pooled layer measures distances on any labelled images."""

import flax.linen as nn
import jax.numpy as jnp

from cm_jax.networks.layers import Conv, GroupNorm, Init, Linear
from cm_jax.networks.module import Module
from cm_jax.types import Array

INIT = Init("kaiming_normal", 2**0.5)


def widths_for(height: int, width: int) -> tuple[int, ...]:
  """Return the channels of each stage for images of a size: one more stage from 64 pixels on.

  >>> widths_for(16, 16), widths_for(64, 96)
  ((32, 64, 128), (32, 64, 128, 128))
  """
  return (32, 64, 128) if min(height, width) < 64 else (32, 64, 128, 128)


class ResNet(Module):
  """A residual network of one block a stage (He et al. 2016, before-activation), with group norms.

  Every stage but the first halves the image, odd sizes are rounded up. With `widths_for` it has 0.3 million
  parameters below 64 pixels, and 0.6 million from there on.

  Args:
    num_classes: Number of classes.
    widths: Channels of each stage; the last are the features.
  """

  num_classes: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """Return (features [B, widths[-1]], logits [B, num_classes]) of x [B,H,W,C] in [-1, 1]."""
    x = Conv(self.widths[0], initial=INIT, name="stem")(x)
    for stage, width in enumerate(self.widths):
      x = Block(width, 2 if stage else 1, name=f"stage{stage}")(x)
    features = jnp.mean(nn.relu(GroupNorm(name="norm")(x)), axis=(1, 2))
    return features, Linear(self.num_classes, name="logits")(features)


class Block(Module):
  """Two 3x3 convolutions behind a norm and a ReLU each, beside a 1x1 one where the shape changes."""

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = nn.relu(GroupNorm(name="norm0")(x))
    is_same = self.stride == 1 and x.shape[-1] == self.features
    skip = x if is_same else Conv(self.features, 1, self.stride, use_bias=False, name="skip")(h)
    h = Conv(self.features, stride=self.stride, initial=INIT, name="conv0")(h)
    h = Conv(self.features, initial=INIT, name="conv1")(nn.relu(GroupNorm(name="norm1")(h)))
    return skip + h
