"""Resampling of images by affine maps, on the device: little blur, hardly aliased, reflected at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from cm_jax.types import Array


def inverse_affine(scale: Array, angle: Array, stretch: Array, axis: Array, shift: Array) -> Array:
  """Return the affine maps of output positions to where their values are in the input: matrices [B, 2, 3].

  p_in = 2^-scale R(angle) R(-axis) diag(2^-stretch, 2^stretch) R(axis) (p_out - shift).

  Positions are (x to the right, y down) in pixels from the image's centre, and
  R(a) = [[cos a, -sin a], [sin a, cos a]]: the image itself is enlarged, turned counter-clockwise, stretched
  along an axis `axis` counter-clockwise of x, and shifted, in this order (EDM F.2).

  Args:
    scale, stretch: [B], log2 of the factors.
    angle, axis: [B], radians.
    shift: [B, 2], pixels right and down.

  >>> inverse_affine(jnp.ones(1), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), jnp.array([[4.0, 2.0]])).tolist()
  [[[0.5, 0.0, -2.0], [0.0, 0.5, -1.0]]]
  """
  # Written out, not as matrix products, which accelerators round to bfloat16 by default; and exactly the
  # identity for zeros.
  shrink, thin, wide = jnp.exp2(-scale), jnp.exp2(-stretch), jnp.exp2(stretch)
  c, s = jnp.cos(axis), jnp.sin(axis)
  xx, xy, yy = c * c * thin + s * s * wide, c * s * (wide - thin), s * s * thin + c * c * wide
  c, s = shrink * jnp.cos(angle), shrink * jnp.sin(angle)
  rows = ((c * xx - s * xy, c * xy - s * yy), (s * xx + c * xy, s * xy + c * yy))
  x, y = shift.T
  return jnp.stack([jnp.stack([a, b, -(a * x + b * y)], axis=1) for a, b in rows], axis=1)


def resample(images: Array, inverse: Array) -> Array:
  """Move images by affine maps, reflected beyond their edges; the identity gives an image back bit for bit.

  Upsampling by 2, bilinear interpolation at twice the output's resolution too, and downsampling by 2, both
  with Lanczos-3: an image is blurred less than by bilinear interpolation alone, and hardly aliases where it
  shrinks by less than 2.

  Args:
    images: [B, H, W, C], float.
    inverse: [B, 2, 3], of output positions to input positions (x right, y down) in pixels from the centre, as
      of `inverse_affine`.

  Returns:
    [B, H, W, C] in [-1, 1], or in an image's own range where that is wider, as latents' may be.

  Note:
    EDM's filter is the sym6 wavelet's; it reflects once, takes 0 beyond, and lets values overshoot [-1, 1].

  >>> image = jnp.arange(16.0).reshape(1, 4, 4, 1)
  >>> quarter_turn = jnp.array([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
  >>> resample(image, jnp.eye(2, 3)[None]).ravel().tolist() == image.ravel().tolist()
  True
  >>> resample(image, quarter_turn).shape
  (1, 4, 4, 1)
  """
  _, height, width, _ = images.shape
  highest = jax.lax.Precision.HIGHEST
  fine = jnp.einsum("ih,bhwc,jw->bijc", _upsampling(height), images, _upsampling(width), precision=highest)

  x, y = (_fine_positions(size) for size in (width, height))
  entry = lambda row, column: inverse[:, row, column][:, None, None]
  moved = lambda row: entry(row, 0) * x[None, None, :] + entry(row, 1) * y[None, :, None] + entry(row, 2)
  index = lambda position, size: 2 * reflect(position + (size - 1) / 2, size) + 0.5
  one_channel = lambda image, y, x: map_coordinates(image, (y, x), order=1, mode="nearest")
  sample = jax.vmap(jax.vmap(one_channel, (2, None, None), 2))
  fine = sample(fine, index(moved(1), height), index(moved(0), width))

  down = _downsampling(height), fine, _downsampling(width)
  result = jnp.einsum("ih,bhwc,jw->bijc", *down, precision=highest)
  low, high = (extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (jnp.min, jnp.max))
  result = jnp.clip(result, jnp.minimum(low, -1), jnp.maximum(high, 1))
  identity = (inverse == jnp.eye(2, 3)[None]).all((1, 2))
  return jnp.where(identity[:, None, None, None], images, result.astype(images.dtype))


def reflect(position: Array, size: int) -> Array:
  """Fold positions, integer or not, into [0, size - 1] by reflection about both ends."""
  period = max(2 * (size - 1), 1)
  return jnp.minimum(size - 1 - jnp.abs(size - 1 - position % period), size - 1)


# Lanczos-3 at a quarter of a pixel from the centre, then every half pixel; either phase of the upsampling
# adds up to 1.
_OFFSETS = (np.arange(12) - 5.5) / 2
_TAPS = np.sinc(_OFFSETS) * np.sinc(_OFFSETS / 3)
_TAPS *= 2 / _TAPS.sum()


def _upsampling(size: int) -> np.ndarray:
  """Return [2 size, size]: pixels to values at twice the resolution, at positions -1/4, 1/4, 3/4, ..."""
  reflected = np.pad(np.eye(size), ((3, 3), (0, 0)), mode="reflect")
  spread = 2 * _downsampling(size + 6).T[11 : 11 + 2 * size]
  return (spread @ reflected).astype(np.float32)


def _fine_positions(size: int) -> np.ndarray:
  """Return the positions, from the centre, that `_downsampling` takes: half a filter beyond both ends too."""
  return ((np.arange(2 * size + 10) - 5.5) / 2 - (size - 1) / 2).astype(np.float32)


def _downsampling(size: int) -> np.ndarray:
  """Return [size, 2 size + 10]: values at `_fine_positions` to pixels."""
  return np.stack([np.pad(_TAPS / 2, (2 * i, 2 * (size - 1 - i))) for i in range(size)]).astype(np.float32)
