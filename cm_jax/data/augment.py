"""What is done to pixels on the device, inside the jitted step or sampler."""

import jax
import jax.numpy as jnp

from cm_jax.types import Array


def normalize(image: Array) -> Array:
  """Map uint8 pixels to [-1, 1]: x / 127.5 - 1; float32 latents pass as they are.

  >>> normalize(jnp.array([0, 255], jnp.uint8)).tolist()
  [-1.0, 1.0]
  """
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 127.5 - 1
  return image.astype(jnp.float32)


def quantize(x: Array) -> Array:
  """Map [-1, 1] to uint8 as EDM does, the nearest level: clip(floor(127.5 x + 128), 0, 255).

  >>> quantize(jnp.array([-1.2, -1.0, 0.0, 1.0])).tolist()
  [0, 0, 128, 255]
  """
  return jnp.clip(jnp.floor(x * 127.5 + 128), 0, 255).astype(jnp.uint8)


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
