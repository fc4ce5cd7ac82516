"""A small image classifier: its penultimate layer measures distances where no public features fit."""

import flax.linen as nn

from cm_jax.networks.layers import Conv, Init, Linear, downsample
from cm_jax.networks.module import Module
from cm_jax.types import Array

INIT = Init("kaiming_normal", 2**0.5)


class SmallClassifier(Module):
  """Four 3x3 convolutions with one 2x reduction, a ReLU layer over all positions, a linear head.

  Args:
    num_classes: Number of classes.
    width: Channels at full resolution; twice that at half resolution.
    feature_dim: Channels of the penultimate layer.
  """

  num_classes: int
  width: int = 32
  feature_dim: int = 64

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """Return (features [B, feature_dim], logits [B, num_classes]) of x [B,H,W,C] in [-1, 1], H and W even."""
    x = nn.relu(Conv(self.width, initial=INIT, name="conv0")(x))
    x = downsample(nn.relu(Conv(self.width, initial=INIT, name="conv1")(x)))
    x = nn.relu(Conv(2 * self.width, initial=INIT, name="conv2")(x))
    x = nn.relu(Conv(2 * self.width, initial=INIT, name="conv3")(x))
    b, h, w, c = x.shape
    features = nn.relu(Linear(self.feature_dim, INIT, name="features")(x.reshape(b, h * w * c)))
    return features, Linear(self.num_classes, name="logits")(features)
