"""What an editing task measures of an image, and how generated content fills in the rest (CM Alg. 4).

A measurement is orthonormal: with A an orthogonal change of coordinates and Omega the coordinates to fill in,
merge(x, y) = A^-1 [(A y) (1 - Omega) + (A x) Omega].
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from cm_jax.errors import UserError
from cm_jax.types import Array

LUMINANCE = (0.2989, 0.5870, 0.1140)


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
  """Inpainting: the pixels where the mask is 1 are known.

  Args:
    known: [H,W] or [B,H,W,C] of 0 and 1.
    unknown: What `forward` shows where nothing is known: 0, as CM Alg. 4 and jcm; OpenAI's code has -1.

  >>> import jax.numpy as jnp
  >>> mask = Mask(np.array([[1.0, 0.0]]))
  >>> mask.merge(jnp.full((1, 1, 2, 1), 5.0), jnp.zeros((1, 1, 2, 1))).ravel().tolist()
  [0.0, 5.0]
  """

  known: np.ndarray
  unknown: float = 0.0

  def _known(self, x: Array) -> Array:
    known = jnp.asarray(self.known, bool)
    return jnp.broadcast_to(known[None, :, :, None] if known.ndim == 2 else known, x.shape)

  def forward(self, x: Array) -> Array:
    """Return the measurement as an image."""
    return jnp.where(self._known(x), x, self.unknown)

  shown = forward

  def merge(self, x: Array, y: Array) -> Array:
    """Return y where it is known, x elsewhere."""
    return jnp.where(self._known(x), y, x)


@dataclasses.dataclass(frozen=True)
class Colorize:
  """Colourisation: the luminance 0.2989 R + 0.5870 G + 0.1140 B is known.

  The known coordinate is the one along these weights, scaled to length 1; the two across it are filled in.

  Raises:
    UserError: When it is called: images of other than 3 channels.

  >>> import jax.numpy as jnp
  >>> red = jnp.array([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
  >>> grey = Colorize().merge(jnp.zeros_like(red), red).ravel()
  >>> round(float(grey @ jnp.array(LUMINANCE)), 4)
  0.2989
  """

  def _along(self, x: Array) -> Array:
    direction = jnp.asarray(np.array(LUMINANCE) / np.linalg.norm(LUMINANCE), x.dtype)
    if x.shape[-1] != 3:
      raise UserError("task", "colorize", f"a model of 3 channels, not {x.shape[-1]}")
    return (x @ direction)[..., None] * direction[None, None, None]

  def forward(self, x: Array) -> Array:
    """Return the part of x along the luminance."""
    return self._along(x)

  def shown(self, x: Array) -> Array:
    """Return the luminance as a grey image; the part along it alone has a colour of its own."""
    luminance = x @ jnp.asarray(np.array(LUMINANCE) / sum(LUMINANCE), x.dtype)
    return jnp.broadcast_to(luminance[..., None], x.shape)

  def merge(self, x: Array, y: Array) -> Array:
    """Return x with the luminance of y."""
    return x + self._along(y - x)


@dataclasses.dataclass(frozen=True)
class SuperResolution:
  """Super-resolution: the mean of every factor x factor block is known.

  Args:
    factor: >= 2; divides the image's sides.

  Raises:
    UserError: Another factor; when it is called, one that does not divide them.

  >>> import jax.numpy as jnp
  >>> SuperResolution(2).forward(jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel().tolist()
  [1.5, 1.5, 1.5, 1.5]
  """

  factor: int

  def __post_init__(self):
    if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 2:
      raise UserError("factor", self.factor, "an integer >= 2")

  def forward(self, x: Array) -> Array:
    """Return the block means, spread over their blocks."""
    batch, height, width, channels = x.shape
    f = self.factor
    if height % f or width % f:
      raise UserError("factor", f, f"a divisor of {height}x{width}, the image's sides")
    means = x.reshape(batch, height // f, f, width // f, f, channels).mean(axis=(2, 4))
    return functools.reduce(lambda m, axis: jnp.repeat(m, f, axis=axis), (1, 2), means)

  shown = forward

  def merge(self, x: Array, y: Array) -> Array:
    """Return x with the block means of y."""
    return x + self.forward(y - x)
