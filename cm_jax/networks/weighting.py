"""Heads that belong to a loss, with the parameters `params["weighting"]`: EDM2's and sCM's weights."""

import flax.linen as nn
import jax

from cm_jax.networks.magnitude import MPConv, MPFourier
from cm_jax.networks.module import Module
from cm_jax.types import Array


class LogVariance(Module):
  """u(c_noise) [B] -> [B]: one linear map of Fourier features; a loss uses it as L / e^u + u.

  Named as in EDM2's checkpoints ("logvar_fourier.freqs", "logvar_linear.weight").

  Args:
    logvar_channels: Number of Fourier features.
  """

  logvar_channels: int = 128

  @nn.compact
  def __call__(self, c_noise: Array) -> Array:
    features = MPFourier(self.logvar_channels, name="logvar_fourier")(c_noise)
    return MPConv(1, 0, dtype=features.dtype.name, name="logvar_linear")(features)[:, 0]


class AdaptiveWeight(Module):
  """w(c_noise) [B] -> [B]: one linear map of Fourier features; a loss uses it as e^w L - w (sCM section 4.1).

  Unlike `LogVariance` its weight is not normalised, so that it can start at 0: every noise level equally
  weighted.

  Args:
    channels: Number of Fourier features.
  """

  channels: int = 128

  @nn.compact
  def __call__(self, c_noise: Array) -> Array:
    features = MPFourier(self.channels, name="fourier")(c_noise)
    weight = self.param("weight", nn.initializers.zeros, (self.channels,))
    return features @ weight.astype(features.dtype) / jax.numpy.sqrt(self.channels)
