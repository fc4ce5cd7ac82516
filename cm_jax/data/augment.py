"""Augmentation on the device, inside the jitted step."""

import jax
import jax.numpy as jnp

from cm_jax.types import Array


def random_flip(images: Array, key: Array) -> Array:
  """Mirror each image left to right with probability 1/2.

  Example i draws from `fold_in(key, i)`: how the batch is spread over devices changes nothing.

  Args:
    images: [B, H, W, C], any dtype.
    key: One PRNG key for the batch.
  """
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(images.shape[0]))
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
