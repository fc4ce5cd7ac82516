"""The learned log-variance of a loss as a function of the noise level: EDM2's uncertainty, sCM's adaptive weight."""

import flax.linen as nn

from cm_jax.networks.magnitude import MPConv, MPFourier
from cm_jax.types import Array


class LogVariance(nn.Module):
  """u(c_noise) [B] -> [B]: one linear map of Fourier features; its parameters belong in `params["weighting"]`.

  Named as in EDM2's checkpoints ("logvar_fourier.freqs", "logvar_linear.weight"). A loss uses it as L / e^u + u.

  Args:
    logvar_channels: Number of Fourier features.
  """

  logvar_channels: int = 128

  @nn.compact
  def __call__(self, c_noise: Array) -> Array:
    features = MPFourier(self.logvar_channels, name="logvar_fourier")(c_noise)
    return MPConv(1, 0, dtype=features.dtype.name, name="logvar_linear")(features)[:, 0]
