"""The one convention between uint8 images and the [-1, 1] that the maths works in."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from cm_jax.types import Array


def is_latent(image_shape: Sequence[int]) -> bool:
  """Say whether arrays (H, W, C) are latents, float32 and not to be quantised: an image has 1 or 3 channels.

  >>> is_latent((64, 64, 4)), is_latent((8, 8, 1))
  (True, False)
  """
  return image_shape[-1] not in (1, 3)


def normalize(image: Array) -> Array:
  """Map uint8 [0, 255] to float32 [-1, 1]: v / 127.5 - 1; float images and latents pass through.

  >>> normalize(jnp.array([0, 255], jnp.uint8)).tolist()
  [-1.0, 1.0]
  """
  return image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image


def quantize(x: Array) -> Array:
  """Map [-1, 1] to uint8, rounding half up: clip(floor(127.5 x + 128), 0, 255) (EDM, ECT).

  Note:
    OpenAI and jcm truncate instead, one level lower on half of all values;
    `quantize(normalize(v)) == v` holds only here.

  >>> quantize(jnp.array([-1.0, 0.0, 1.0, 7.0])).tolist()
  [0, 128, 255, 255]
  """
  return jnp.clip(jnp.floor(127.5 * x + 128), 0, 255).astype(jnp.uint8)


def truncate(x: Array) -> Array:
  """Map [-1, 1] to uint8 as OpenAI's and jcm's codes do: floor(clip(127.5 (x + 1), 0, 255)).

  Note:
    One level below `quantize` on half of all values; exact 8-bit levels do not all come back, so that it is
    for samples and never for real images.

  >>> truncate(jnp.array([-1.0, 0.0, 1.0, 7.0])).tolist()
  [0, 127, 255, 255]
  """
  return jnp.clip((x + 1) * 127.5, 0, 255).astype(jnp.uint8)


# How samples become uint8, by the code that does it so.
QUANTISERS: Mapping[str, Callable[[Array], Array]] = {"edm": quantize, "adm": truncate}
