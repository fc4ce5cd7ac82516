"""Grids of noise levels, each once: Karras' (EDM eq. 5), the variance-preserving process'."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm_jax.types import Array, NoiseRange


def karras_between(start: Any, end: Any, fraction: Any, rho: float) -> Any:
  """Return the level at a fraction of the way from start to end, evenly in sigma^(1/rho); of any array type.

  >>> round(karras_between(80.0, 0.002, 0.5, 7.0), 3)
  2.515
  """
  return (start ** (1 / rho) + fraction * (end ** (1 / rho) - start ** (1 / rho))) ** rho


def karras_sigma(index: Array, num_scales: Array | int, noise: NoiseRange) -> Array:
  """Return the index-th noise level, largest first, of the Karras grid with `num_scales` points (EDM eq.
  5; CM section 2).

  sigma_i = (T^(1/rho) + i/(N-1) (eps^(1/rho) - T^(1/rho)))^rho, i = 0..N-1.
  `num_scales` may be traced, so that a new N never recompiles.

  Args:
    index: Any shape, in [0, N-1]; fractional indices are allowed.
    num_scales: N, the number of grid points, >= 2.
    noise: sigma_min, sigma_max, rho.

  Returns:
    sigma, the shape of `index`.

  >>> import jax.numpy as jnp
  >>> [float(f"{s:.3g}") for s in karras_sigma(jnp.array([0, 11, 17]), 18, NoiseRange())]
  [80.0, 0.585, 0.002]
  """
  index = jnp.asarray(index, jnp.result_type(float))
  fraction = index / (jnp.asarray(num_scales, index.dtype) - 1)
  # The ends are exact: the boundary condition f(x, sigma_min) = x and samplers rely on them.
  inner = karras_between(noise.sigma_max, noise.sigma_min, fraction, noise.rho)
  return jnp.where(fraction <= 0, noise.sigma_max, jnp.where(fraction >= 1, noise.sigma_min, inner))


def karras_grid(num_scales: int, noise: NoiseRange) -> Array:
  """Return the whole Karras grid, [num_scales], decreasing from sigma_max to sigma_min (EDM eq. 5).

  >>> karras_grid(2, NoiseRange(sigma_min=0.5, sigma_max=2.0)).tolist()
  [2.0, 0.5]
  """
  return karras_sigma(jnp.arange(num_scales), num_scales, noise)


def karras_levels(num_scales: int, noise: NoiseRange) -> tuple[float, ...]:
  """Return the Karras grid as numbers on the host, float64; one level is sigma_max.

  >>> karras_levels(2, NoiseRange(sigma_min=0.5, sigma_max=2.0))
  (2.0, 0.5)
  """
  if num_scales == 1:
    return (noise.sigma_max,)
  inner = karras_between(
    noise.sigma_max, noise.sigma_min, np.arange(num_scales) / (num_scales - 1), noise.rho
  )
  return (noise.sigma_max, *(float(level) for level in inner[1:-1]), noise.sigma_min)


def karras_interval(sigma: Array, num_scales: Array | int, noise: NoiseRange) -> Array:
  """Return the interval of the Karras grid that holds each level, int32 in [0, N-2], 0 the noisiest.

  >>> karras_interval(jnp.array([79.0, 0.003]), 18, NoiseRange()).tolist()
  [0, 16]
  """
  root = lambda level: level ** (1 / noise.rho)
  top, bottom = root(noise.sigma_max), root(noise.sigma_min)
  index = jnp.floor((top - root(sigma)) / (top - bottom) * (num_scales - 1)).astype(jnp.int32)
  return jnp.clip(index, 0, num_scales - 2)


def karras_below(sigma: Array, num_scales: Array | int, noise: NoiseRange) -> Array:
  """Return the level one interval of the Karras grid with `num_scales` points below each level, >= 0.

  >>> [round(level, 3) for level in karras_below(jnp.array([80.0, 0.003]), 18, NoiseRange()).tolist()]
  [57.586, 0.001]
  """
  root = lambda level: level ** (1 / noise.rho)
  step = (root(noise.sigma_max) - root(noise.sigma_min)) / (jnp.asarray(num_scales, sigma.dtype) - 1)
  return jnp.maximum(root(sigma) - step, 0) ** noise.rho


def vp_sigma(t: Any, beta_d: float = 19.9, beta_min: float = 0.1) -> Any:
  """Return sigma(t) = sqrt(exp(beta_d t^2/2 + beta_min t) - 1) of the variance-preserving process (EDM table
  1, column VP).

  Of a number, on the host in float64; of an array, traced or not, in its type.

  >>> round(vp_sigma(1.0), 1)
  152.2
  """
  exponent = beta_d * t**2 / 2 + beta_min * t
  if isinstance(t, (float, int)):
    return math.sqrt(math.expm1(exponent))
  return np.sqrt(np.expm1(exponent)) if isinstance(t, np.ndarray) else jnp.sqrt(jnp.expm1(exponent))


def vp_time(sigma: Any, beta_d: float = 19.9, beta_min: float = 0.1) -> Any:
  """Return t(sigma), the inverse of `vp_sigma`; in [0, 1] for the levels of training.

  >>> round(vp_time(vp_sigma(0.25)), 4)
  0.25
  """
  if isinstance(sigma, (float, int)):
    return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_min) / beta_d
  return (jnp.sqrt(beta_min**2 + 2 * beta_d * jnp.log1p(sigma**2)) - beta_min) / beta_d
