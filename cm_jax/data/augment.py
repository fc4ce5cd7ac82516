"""Augmentation on the device, inside the jitted step: mirroring, and EDM's non-leaky geometric transforms.

Non-leaky: the network is told, by a label, what was done to an image. All zeros is nothing, which is what
sampling asks for (EDM F.2).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.data.resample import inverse_affine, reflect, resample
from cm_jax.errors import UserError
from cm_jax.types import Array

# Width of each transform's part of the label, in its order
WIDTHS = {
  "xflip": 1,
  "yflip": 1,
  "rotate_int": 2,
  "translate_int": 2,
  "scale": 1,
  "rotate_frac": 2,
  "aniso": 2,
  "translate_frac": 2,
}
RESAMPLED = ("scale", "rotate_frac", "aniso", "translate_frac")


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


class Transforms(NamedTuple):
  """What is done to each of B images, in this order; zeros do nothing. Turns are counter-clockwise as seen.

  Attributes:
    xflip, yflip: [B], 1 where mirrored left to right, upside down.
    rotate_int: int32 [B], quarter turns, 0 to 3.
    translate_int: int32 [B, 2], pixels to the right and up.
    scale: [B], enlargement by 2^(scale_std scale).
    rotate_frac: [B], angle of a turn in radians.
    aniso: [B, 2], stretch by 2^(aniso_std aniso[0]) along the axis at the angle aniso[1], in radians, and
      shrinking by it across.
    translate_frac: [B, 2], shift right and down, in units of translate_frac_std times the image's width and
      height.
  """

  xflip: Array
  yflip: Array
  rotate_int: Array
  translate_int: Array
  scale: Array
  rotate_frac: Array
  aniso: Array
  translate_frac: Array


@dataclasses.dataclass(frozen=True)
class Augment:
  """EDM's augmentation: (images, key) -> (images, label); by default that of CIFAR-10, 9 wide (EDM table 6).

  A transform is applied to an image with probability min(p times its multiplier, 1), 0 leaves it out of the
  label too. Order and units of the label are those of EDM's published weights (`map_augment`): [xflip, yflip,
  (two bits of) rotate_int, translate_int / its maximum, scale, cos - 1 and sin of rotate_frac, aniso's
  strength times cos and sin of its axis, translate_frac].

  Args:
    p: Multiplies all probabilities; in [0, 1].
    xflip, yflip: Multiplier of mirroring, which does something in half of the cases; 1e8: xflip if p > 0.
    rotate_int, translate_int: Multipliers of exact quarter turns, which need square images, and of shifts by
      whole pixels.
    scale, rotate_frac, aniso, translate_frac: Multipliers of the transforms that compose into one affine map,
      by `resample`.
    translate_int_max: Largest shift, as a fraction of the image.
    scale_std, aniso_std: Standard deviations of the log2 of enlargement and stretch.
    rotate_frac_max: Largest turn, 1 for half a turn either way.
    aniso_rotate_prob: Probability of a stretch along any axis; else along x.
    translate_frac_std: Standard deviation of the shift, as a fraction of the image.

  Raises:
    UserError: A value out of range, or no transform at all.

  >>> images, label = jax.eval_shape(Augment(p=1.0), jnp.zeros((2, 8, 8, 1)), jax.random.key(0))
  >>> images.shape, label.shape
  ((2, 8, 8, 1), (2, 9))
  """

  p: float = 0.12
  xflip: float = 1e8
  yflip: float = 1.0
  rotate_int: float = 0.0
  translate_int: float = 0.0
  scale: float = 1.0
  rotate_frac: float = 1.0
  aniso: float = 1.0
  translate_frac: float = 1.0
  translate_int_max: float = 0.125
  scale_std: float = 0.2
  rotate_frac_max: float = 1.0
  aniso_std: float = 0.2
  aniso_rotate_prob: float = 0.5
  translate_frac_std: float = 0.125

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      largest = 1 if field.name in ("p", "aniso_rotate_prob", "rotate_frac_max") else math.inf
      is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if not is_number or not (math.isfinite(value) and 0 <= value <= largest):
        expected = f"a number in [0, {largest}]" if largest == 1 else "a number >= 0"
        raise UserError(field.name, value, expected)
    if self.translate_int and not self.translate_int_max:
      expected = "more than 0, as the label is divided by it"
      raise UserError("translate_int_max", self.translate_int_max, expected)
    if not self.dim:
      expected = "a transform with a multiplier above 0, this or another; {} for no augmentation"
      raise UserError("xflip", self.xflip, expected)

  @property
  def dim(self) -> int:
    """Width of the label, the network's `augment_dim`."""
    return sum(width for name, width in WIDTHS.items() if getattr(self, name))

  def __call__(self, images: Array, key: Array) -> tuple[Array, Array]:
    """Transform each image at random; example i draws from `fold_in(key, i)`.

    Args:
      images: [B, H, W, C] in [-1, 1], float.
      key: One PRNG key for the batch.

    Returns:
      The images, and the label float32 [B, dim].
    """
    _, height, width, _ = images.shape
    transforms = self.draw(key, images.shape)
    moved = self.blit(images, transforms)
    if any(getattr(self, name) for name in RESAMPLED):
      moved = resample(moved, self.inverse(transforms, height, width))
    return moved, self.label(transforms, height, width)

  def draw(self, key: Array, shape: tuple[int, ...]) -> Transforms:
    """Draw the transforms of images of a shape (B, H, W, C)."""
    extent = self.translate_int_max * np.array([shape[2], shape[1]], np.float32)
    probabilities = np.array([self.p * getattr(self, name) for name in WIDTHS], np.float32)

    def draw_one(i: Array) -> Transforms:
      keys = jax.random.split(jax.random.fold_in(key, i), 7)
      on = (jax.random.uniform(keys[0], probabilities.shape, jnp.float32) < probabilities).astype(jnp.float32)
      xflip, yflip = on[:2] * jax.random.bernoulli(keys[1], shape=(2,))
      turns = on[2].astype(jnp.int32) * jax.random.randint(keys[2], (), 0, 4, jnp.int32)
      pixels = jnp.round(on[3] * extent * jax.random.uniform(keys[3], (2,), jnp.float32, -1, 1))
      normal = jax.random.normal(keys[4], (4,), jnp.float32)
      angle, axis = jax.random.uniform(keys[5], (2,), jnp.float32, -math.pi, math.pi)
      axis = axis * jax.random.bernoulli(keys[6], self.aniso_rotate_prob)
      stretch = on[6] * jnp.stack([normal[1], axis])
      angle = on[5] * self.rotate_frac_max * angle
      scale, shift = on[4] * normal[0], on[7] * normal[2:]
      return Transforms(xflip, yflip, turns, pixels.astype(jnp.int32), scale, angle, stretch, shift)

    return jax.vmap(draw_one)(jnp.arange(shape[0]))

  def blit(self, images: Array, transforms: Transforms) -> Array:
    """Return the images after what only moves pixels: mirroring, quarter turns, whole-pixel shifts.

    A shift fills in by reflection about the pixel at the edge.

    Raises:
      UserError: Quarter turns of images that are not square.
    """
    _, height, width, _ = images.shape
    per_image = lambda values: values[:, None, None, None]
    if self.xflip:
      images = jnp.where(per_image(transforms.xflip > 0), images[:, :, ::-1], images)
    if self.yflip:
      images = jnp.where(per_image(transforms.yflip > 0), images[:, ::-1], images)
    if self.rotate_int:
      if height != width:
        expected = f"0: images of {height} x {width} pixels are not square"
        raise UserError("rotate_int", self.rotate_int, expected)
      turned = [jnp.rot90(images, k, axes=(1, 2)) for k in range(4)]
      images = jax.lax.select_n(jnp.broadcast_to(per_image(transforms.rotate_int), images.shape), *turned)
    if self.translate_int:
      x = reflect(jnp.arange(width)[None] - transforms.translate_int[:, :1], width)
      y = reflect(jnp.arange(height)[None] + transforms.translate_int[:, 1:], height)
      images = jax.vmap(lambda image, y, x: image[y][:, x])(images, y, x)
    return images

  def inverse(self, transforms: Transforms, height: int, width: int) -> Array:
    """Return `inverse_affine` of the drawn transforms."""
    shift = transforms.translate_frac * (self.translate_frac_std * np.array([[width, height]], np.float32))
    strength, axis = transforms.aniso.T
    scale, stretch = self.scale_std * transforms.scale, self.aniso_std * strength
    return inverse_affine(scale, transforms.rotate_frac, stretch, axis, shift)

  def label(self, transforms: Transforms, height: int, width: int) -> Array:
    """Return what the network is told, float32 [B, dim]."""
    turns, angle, (strength, axis) = transforms.rotate_int, transforms.rotate_frac, transforms.aniso.T
    pair = lambda a, b: jnp.stack([a, b], axis=1)
    largest = self.translate_int_max * np.array([[width, height]], np.float32)
    parts = {
      "xflip": transforms.xflip[:, None],
      "yflip": transforms.yflip[:, None],
      "rotate_int": pair((turns == 1) | (turns == 2), (turns == 2) | (turns == 3)),
      "translate_int": transforms.translate_int / largest,
      "scale": transforms.scale[:, None],
      "rotate_frac": pair(jnp.cos(angle) - 1, jnp.sin(angle)),
      "aniso": pair(strength * jnp.cos(axis), strength * jnp.sin(axis)),
      "translate_frac": transforms.translate_frac,
    }
    used = [parts[name].astype(jnp.float32) for name in WIDTHS if getattr(self, name)]
    return jnp.concatenate(used, axis=1)
