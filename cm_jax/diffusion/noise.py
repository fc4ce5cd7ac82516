"""Noise: broadcasting over images, and draws that depend on (seed, sample) only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.errors import UserError
from cm_jax.types import Array, Noise


def check_seed(seed: int, field: str = "seed") -> None:
  """Check that a seed is one of JAX's: a larger one would in silence be the same as a smaller one.

  Raises:
    UserError: It is not.
  """
  if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
    raise UserError(field, seed, "an integer, 0 to 4294967295 (2^32 - 1)")


def append_dims(v: Array, x: Array) -> Array:
  """Reshape v [B] to broadcast against x [B, ...].

  >>> import jax.numpy as jnp
  >>> append_dims(jnp.ones(3), jnp.ones((3, 8, 8, 1))).shape
  (3, 1, 1, 1)
  """
  return v.reshape(v.shape + (1,) * (x.ndim - v.ndim))


def per_sample_noise(key: Array, indices: Array) -> Noise:
  """Return `noise(k, shape)`: the k-th standard normal draw for samples `indices`.

  Row j depends on (key, indices[j], k) only, so sample i is the same whatever the batch size and the number
  of devices (invariant 8).

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
    # float32 also where float64 is switched on: a sample is the same there
    draw = lambda sample_key: jax.random.normal(jax.random.fold_in(sample_key, k), shape[1:], jnp.float32)
    return jax.vmap(draw)(keys)

  return noise
