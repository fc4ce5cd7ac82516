"""Closed-form truth: Gaussian data N(m, s^2 I), of which denoiser, score and path are known exactly.

x_t = x + t z is N(m, (s^2 + t^2) I), so everything is linear in x:

  D(x, t) = (s^2 x + t^2 m)/(s^2 + t^2), score = (m - x)/(s^2 + t^2), drift = t (x - m)/(s^2 + t^2),

and the probability-flow ODE dx/dt = drift keeps (x - m)/sqrt(s^2 + t^2) constant.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.denoiser import NOTHING
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.precond import EDM
from cm_jax.types import Array, Condition, Denoiser, FlowMap, NoiseRange, Params


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """Data N(mean, std^2 I); x is [B,H,W,C], noise levels are [B]."""

  mean: Any = 0.2
  std: Any = 0.5

  def variance(self, sigma: Array, x: Array) -> Array:
    """Return s^2 + sigma^2, ready to divide x."""
    return append_dims(self.std**2 + sigma**2, x)

  def denoise(self, x: Array, sigma: Array) -> Array:
    """Return D(x, sigma) = E[data | x]."""
    return (self.std**2 * x + append_dims(sigma**2, x) * self.mean) / self.variance(sigma, x)

  def score(self, x: Array, sigma: Array) -> Array:
    """Return the gradient of ln p_sigma at x."""
    return (self.mean - x) / self.variance(sigma, x)

  def drift(self, x: Array, sigma: Array) -> Array:
    """Return dx/dsigma of the probability-flow ODE."""
    return append_dims(sigma, x) * (x - self.mean) / self.variance(sigma, x)

  def path(self, x: Array, t: Array, r: Array) -> Array:
    """Return where the trajectory through x at noise level t is at noise level r."""
    return self.mean + (x - self.mean) * append_dims(self._shrinking(t, r), x)

  def consistency(self, sigma_min: float) -> Callable[[Array, Array], Array]:
    """Return f(x, sigma), the end at sigma_min of the trajectory through x."""
    return lambda x, sigma: self.path(x, sigma, jnp.full_like(sigma, sigma_min))

  def flow_map(self, x: Array, sigma: Array, s: Array) -> Array:
    """Return g(x, sigma, s), 0 <= s <= sigma, with path(x, sigma, s) = (s/sigma) x + (1 - s/sigma) g.

    With q = s/sigma and R = sqrt((v + s^2)/(v + sigma^2)), v the data's variance, g - m is (R - q)/(1 - q) of
    x - m, in the form that is none of 0/0 at s = sigma.
    """
    q, v = s / sigma, self.std**2
    slope = v * (1 + q) / ((v + sigma**2) * (self._shrinking(sigma, s) + q))
    return self.mean + (x - self.mean) * append_dims(slope, x)

  def _shrinking(self, t: Array, r: Array) -> Array:
    return jnp.sqrt((self.std**2 + r**2) / (self.std**2 + t**2))


@dataclasses.dataclass(frozen=True)
class GaussianPreconditioned:
  """A `Preconditioned` whose denoiser is a Gaussian's, of params {"net": {"mean": ..., "std": ...}}.

  Args:
    sigma_min: None for the denoiser D; else the consistency function that ends there.
    precond: Of which `raw` is the F.
  """

  sigma_min: float | None = None
  precond: EDM = dataclasses.field(default_factory=lambda: EDM(NoiseRange()))

  def __call__(self, params: Params, condition: Condition = NOTHING, key: Array | None = None) -> Denoiser:
    data = self._data(params)
    return data.denoise if self.sigma_min is None else data.consistency(self.sigma_min)

  def flow_map(self, params: Params, condition: Condition = NOTHING, key: Array | None = None) -> FlowMap:
    return self._data(params).flow_map

  def raw(
    self, params: Params, x: Array, c_noise: Array, condition: Condition = NOTHING, key: Array | None = None
  ) -> Array:
    """Return F of D = c_skip x + c_out F, at the noise level that c_noise says."""
    sigma = jnp.exp(4 * c_noise / self.precond.time_scale)
    c_skip, c_out, c_in, _ = (append_dims(scaling, x) for scaling in self.precond(sigma))
    return (self(params, condition, key)(x / c_in, sigma) - c_skip * x / c_in) / c_out

  def _data(self, params: Params) -> Gaussian:
    return Gaussian(params["net"]["mean"], params["net"]["std"])


def quadrature(
  data: Gaussian, noise: NoiseRange, num_scales: int, nodes: int = 40
) -> tuple[Array, Array, Array, Array]:
  """Return (x, z, interval, weight): a batch of 1x1x1 images whose weighted sum is the exact expectation.

  x runs over Gauss-Hermite nodes of the data, z over those of the noise, interval over 0..num_scales - 2,
  uniformly weighted.
  """
  points, mass = np.polynomial.hermite_e.hermegauss(nodes)
  mass = mass / mass.sum()
  axes = np.meshgrid(np.arange(num_scales - 1), np.arange(nodes), np.arange(nodes), indexing="ij")
  interval, i, j = (axis.ravel() for axis in axes)
  image = lambda values: jnp.asarray(values.reshape(-1, 1, 1, 1))
  x, z = image(data.mean + data.std * points[i]), image(points[j])
  return x, z, jnp.asarray(interval), jnp.asarray(mass[i] * mass[j] / (num_scales - 1))
