"""Pixels on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cm_jax.data.augment import random_flip
from cm_jax.diffusion.pixels import normalize, quantize


def test_quantize_undoes_normalize_on_every_level():
  levels = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(quantize(normalize(levels)), levels)


def test_quantize_is_edms():
  x = np.linspace(-1.5, 1.5, 1001, dtype=np.float32)
  np.testing.assert_array_equal(quantize(jnp.asarray(x)), (x * np.float32(127.5) + np.float32(128)).clip(0, 255).astype(np.uint8))


def test_latents_pass():
  x = jnp.array([[3.5, -7.0]])
  np.testing.assert_array_equal(normalize(x), x)


def test_flip_mirrors_half_of_the_images_whatever_the_sharding():
  images = jnp.arange(64 * 2 * 3, dtype=jnp.float32).reshape(64, 2, 3, 1)
  key = jax.random.key(1)
  flipped = random_flip(images, key)
  mirrored = [bool((flipped[i] == images[i, :, ::-1]).all()) for i in range(64)]
  kept = [bool((flipped[i] == images[i]).all()) for i in range(64)]
  assert all(a != b for a, b in zip(mirrored, kept, strict=True)) and 16 <= sum(mirrored) <= 48
  np.testing.assert_array_equal(random_flip(images[:10], key), flipped[:10])
  mesh = jax.make_mesh((8,), ("data",))
  spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
  np.testing.assert_array_equal(jax.jit(random_flip)(spread, key), flipped)
