"""The only difference between distillation and training in isolation: where the drift of the probability-flow ODE comes from.

PF ODE of the variance-exploding process: dx/dsigma = -sigma score(x, sigma) = (x - D(x, sigma)) / sigma (EDM eq. 1, 3; CM eq. 2).
"""

from cm_jax.diffusion.noise import append_dims
from cm_jax.types import Array, Denoiser, Drift


def teacher_drift(denoiser: Denoiser) -> Drift:
  """Return the drift of a denoiser: (x, sigma) -> (x - D(x, sigma)) / sigma (CM eq. 6, with a score model).

  >>> import jax.numpy as jnp
  >>> drift = teacher_drift(lambda x, sigma: jnp.zeros_like(x))
  >>> drift(jnp.full((1, 1, 1, 1), 6.0), jnp.array([2.0])).item()
  3.0
  """

  def drift(x: Array, sigma: Array) -> Array:
    return (x - denoiser(x, sigma)) / append_dims(sigma, x)

  return drift


def monte_carlo_drift(data: Array) -> Drift:
  """Return the drift of the unbiased Monte Carlo score estimate: (x_t, t) -> (x_t - x) / t for x_t = x + t z (CM eq. 9, section 5).

  E[(x - x_t)/t^2 | x_t] is the score, so this is an unbiased estimate of the drift given x_t. Along it x_t moves to x + r z exactly.

  Args:
    data: The clean images x [B,H,W,C] that x_t was made from.

  >>> import jax.numpy as jnp
  >>> drift = monte_carlo_drift(jnp.full((1, 1, 1, 1), 4.0))
  >>> drift(jnp.full((1, 1, 1, 1), 6.0), jnp.array([2.0])).item()
  1.0
  """
  return teacher_drift(lambda x, sigma: data)
