"""One step of a probability-flow ODE dx/dsigma = drift(x, sigma), and the integration over a grid of noise levels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cm_jax.diffusion.noise import append_dims
from cm_jax.types import Array, Drift

Solver = Callable[[Drift, Array, Array, Array], Array]


def euler(drift: Drift, x: Array, t: Array, r: Array) -> Array:
  """Take one Euler step from noise level t to r: x + (r - t) drift(x, t) (CM section 4). First order.

  Args:
    drift: dx/dsigma.
    x: [B,H,W,C] at noise level t.
    t, r: [B], noise levels; r may be 0.

  >>> import jax.numpy as jnp
  >>> euler(lambda x, s: x, jnp.ones((1, 1, 1, 1)), jnp.ones(1), jnp.full(1, 0.5)).item()
  0.5
  """
  return x + append_dims(r - t, x) * drift(x, t)


def heun(drift: Drift, x: Array, t: Array, r: Array) -> Array:
  """Take one Heun step from noise level t to r: the mean of the drifts at both ends (EDM Alg. 1; CM eq. 6). Second order.

  Where r = 0 the drift at r is 0/0 and the step is Euler's, as in EDM.

  Args:
    drift: dx/dsigma.
    x: [B,H,W,C] at noise level t.
    t, r: [B], noise levels; r may be 0.

  >>> import jax.numpy as jnp
  >>> heun(lambda x, s: x, jnp.ones((1, 1, 1, 1)), jnp.ones(1), jnp.full(1, 0.5)).item()
  0.625
  """
  first = drift(x, t)
  predicted = x + append_dims(r - t, x) * first
  safe = jnp.where(r > 0, r, t)
  second = drift(predicted, safe)
  corrected = x + append_dims(0.5 * (r - t), x) * (first + second)
  return jnp.where(append_dims(r > 0, x), corrected, predicted)


def ancestral_levels(t: Array, r: Array) -> tuple[Array, Array]:
  """Return (down, up) for a stochastic step from noise level t to r < t: integrate to `down`, then add noise of deviation `up`.

  up^2 = r^2 (t^2 - r^2)/t^2, the variance of DDPM's posterior, and down^2 = r^2 - up^2, so that the result has level r.

  >>> import jax.numpy as jnp
  >>> [round(level.item(), 3) for level in ancestral_levels(jnp.full(1, 2.0), jnp.full(1, 1.0))]
  [0.5, 0.866]
  """
  return r**2 / t, r * jnp.sqrt((t - r) * (t + r)) / t


SOLVERS: dict[str, Solver] = {"heun": heun, "euler": euler}


def integrate(drift: Drift, x: Array, sigmas: Array, solver: Solver = heun) -> Array:
  """Integrate the ODE over a grid of noise levels, as one `lax.scan`.

  Args:
    drift: dx/dsigma.
    x: [B,H,W,C] at noise level sigmas[0].
    sigmas: [N], the grid, in the order of integration.
    solver: `euler` or `heun`.

  Returns:
    x at noise level sigmas[-1].

  >>> import jax.numpy as jnp
  >>> x = integrate(lambda x, s: x / append_dims(s, x), jnp.full((1, 1, 1, 1), 2.0), jnp.array([2.0, 1.0, 0.5]))
  >>> x.item()  # dx/ds = x/s keeps x/s
  0.5
  """

  def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
    t, r = pair
    batch = x.shape[:1]
    return solver(drift, x, jnp.broadcast_to(t, batch), jnp.broadcast_to(r, batch)), None

  return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))[0]
