"""Noise levels and noise: the Karras grid, noise-level distributions, noise that depends on (seed, sample) only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cm_jax.types import Array, NoiseRange


def append_dims(v: Array, x: Array) -> Array:
  """Reshape v [B] to broadcast against x [B, ...].

  >>> import jax.numpy as jnp
  >>> append_dims(jnp.ones(3), jnp.ones((3, 8, 8, 1))).shape
  (3, 1, 1, 1)
  """
  return v.reshape(v.shape + (1,) * (x.ndim - v.ndim))


def karras_sigma(index: Array, num_scales: Array | int, noise: NoiseRange) -> Array:
  """Return the index-th noise level, largest first, of the Karras grid with `num_scales` points (EDM eq. 5; CM section 2).

  sigma_i = (T^(1/rho) + i/(N-1) (eps^(1/rho) - T^(1/rho)))^rho, i = 0..N-1. `num_scales` may be traced, so that a new N never recompiles.

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
  low, high = noise.sigma_min ** (1 / noise.rho), noise.sigma_max ** (1 / noise.rho)
  index = jnp.asarray(index, jnp.result_type(float))
  fraction = index / (jnp.asarray(num_scales, index.dtype) - 1)
  # The ends are exact: the boundary condition f(x, sigma_min) = x and samplers rely on them.
  inner = (high + fraction * (low - high)) ** noise.rho
  return jnp.where(fraction <= 0, noise.sigma_max, jnp.where(fraction >= 1, noise.sigma_min, inner))


def karras_grid(num_scales: int, noise: NoiseRange) -> Array:
  """Return the whole Karras grid, [num_scales], decreasing from sigma_max to sigma_min (EDM eq. 5).

  >>> karras_grid(2, NoiseRange(sigma_min=0.5, sigma_max=2.0)).tolist()
  [2.0, 0.5]
  """
  return karras_sigma(jnp.arange(num_scales), num_scales, noise)


def lognormal_sigma(standard_normal: Array, P_mean: float, P_std: float) -> Array:
  """Return sigma with ln sigma ~ N(P_mean, P_std^2) from standard normal draws (EDM table 1).

  >>> import jax.numpy as jnp
  >>> float(lognormal_sigma(jnp.zeros(()), 0.0, 1.2))
  1.0
  """
  return jnp.exp(P_mean + P_std * standard_normal)


def per_sample_noise(key: Array, indices: Array) -> Callable[[Any, tuple[int, ...]], Array]:
  """Return `noise(k, shape)`: the k-th standard normal draw for samples `indices`.

  Row j depends on (key, indices[j], k) only, so sample i is the same whatever the batch size and the number of devices (invariant 8).

  Args:
    key: A typed PRNG key.
    indices: int [B], the global numbers of the samples.

  >>> import jax, jax.numpy as jnp
  >>> noise = per_sample_noise(jax.random.key(0), jnp.array([5, 6]))
  >>> alone = per_sample_noise(jax.random.key(0), jnp.array([6]))
  >>> bool((noise(3, (2, 4))[1] == alone(3, (1, 4))[0]).all())
  True
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)

  def noise(k: Any, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda sample_key: jax.random.normal(jax.random.fold_in(sample_key, k), shape[1:]))(keys)

  return noise
