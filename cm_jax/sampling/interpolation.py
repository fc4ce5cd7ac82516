"""Images between two samples: along the sphere of their noise (CM appendix D)."""

import jax.numpy as jnp

from cm_jax.diffusion.noise import append_dims
from cm_jax.types import Array, Denoiser


def slerp(a: Array, b: Array, fraction: Array) -> Array:
  """Interpolate on the sphere: [sin((1 - t) psi) a + sin(t psi) b]/sin psi, psi their angle (CM appendix D).

  Args:
    a, b: [...], one sample each.
    fraction: t in [0, 1], [K].

  Returns:
    [K, ...].

  >>> slerp(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.array([0.5])).round(4).tolist()
  [[0.707099974155426, 0.707099974155426]]
  """
  u, v = a.ravel(), b.ravel()
  cosine = jnp.clip(jnp.vdot(u, v) / (jnp.linalg.norm(u) * jnp.linalg.norm(v)), -1, 1)
  angle = jnp.arccos(cosine)
  t = append_dims(fraction, jnp.zeros((len(fraction), *a.shape)))
  weights = jnp.sin((1 - t) * angle), jnp.sin(t * angle)
  # Parallel samples have no angle: the straight line between them is the limit.
  curved = (weights[0] * a[None] + weights[1] * b[None]) / jnp.where(angle > 1e-6, jnp.sin(angle), 1.0)
  return jnp.where(angle > 1e-6, curved, (1 - t) * a[None] + t * b[None])


def interpolate(f: Denoiser, a: Array, b: Array, fraction: Array, sigma_max: float) -> Array:
  """Return f(T slerp(z_a, z_b, t), T) for K fractions t: images between one sample's noise and another's.

  >>> a, b = jnp.ones((1, 1, 2)), jnp.array([1.0, -1.0]).reshape(1, 1, 2)
  >>> interpolate(lambda x, sigma: x / sigma[0], a, b, jnp.array([0.0, 1.0]), 80.0)[:, 0, 0].round(3).tolist()
  [[1.0, 1.0], [1.0, -1.0]]
  """
  z = slerp(a, b, fraction)
  return jnp.clip(f(sigma_max * z, jnp.full(len(fraction), sigma_max, z.dtype)), -1, 1)
