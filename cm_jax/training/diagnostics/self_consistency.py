"""The true self-consistency error |f(x_t, t) - f(x_r, r)|:
both points on one trajectory of the probability-flow ODE.

The loss of a consistency model says little about it: its target moves with the student, its gap t - r with
the curriculum, and the Monte Carlo drift of training in isolation adds a variance that does not vanish at the
optimum.
"""

from typing import NamedTuple

import jax.numpy as jnp

from cm_jax.diffusion.grids import karras_below, karras_between
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.solvers import integrate
from cm_jax.types import Array, Denoiser, Drift, NoiseRange

GRID = 18  # points of the Karras grid one interval of which is "adjacent"
# Of Heun's method, to r one interval below t and to the end: at most 4e-4 and 2e-2 of the data's deviation
# off on Gaussian data.
ADJACENT_STEPS, WHOLE_STEPS = 8, 32


class Trajectories(NamedTuple):
  """Points of one trajectory for each example: x_t at noise level t [B], and by name further points (x_r,
  r) at r < t."""

  x_t: Array
  t: Array
  later: dict[str, tuple[Array, Array]]


def spread_levels(n: int, noise: NoiseRange) -> Array:
  """Return n noise levels, evenly in ln sigma between 2 sigma_min and sigma_max:
  the middles of n equal parts.

  >>> spread_levels(2, NoiseRange(sigma_min=0.5, sigma_max=16.0)).round(4).tolist()
  [2.0, 8.0]
  """
  low, high = jnp.log(2 * noise.sigma_min), jnp.log(noise.sigma_max)
  return jnp.exp(low + (jnp.arange(n) + 0.5) / n * (high - low))


def level_below(t: Array, noise: NoiseRange) -> Array:
  """Return the level one interval of the Karras grid with `GRID` points below t, at least sigma_min.

  >>> [round(level, 3) for level in level_below(jnp.array([80.0, 0.003]), NoiseRange()).tolist()]
  [57.586, 0.002]
  """
  return jnp.maximum(karras_below(t, GRID, noise), noise.sigma_min)


def follow(drift: Drift, x: Array, t: Array, r: Array, num_steps: int, rho: float = 7.0) -> Array:
  """Integrate the ODE from t to r by Heun's method, each example on a Karras grid of its own.

  Args:
    drift: dx/dsigma.
    x: [B,H,W,C] at noise levels t.
    t, r: [B], > 0.
    num_steps: Two evaluations of the drift each.
    rho: Curvature of the grid.

  >>> x, start, end = jnp.full((1, 1, 1, 1), 2.0), jnp.full(1, 2.0), jnp.full(1, 0.5)
  >>> x = follow(lambda x, s: x / append_dims(s, x), x, start, end, 3)
  >>> x.round(5).item()  # dx/ds = x/s keeps x/s
  0.5
  """
  fraction = (jnp.arange(num_steps + 1) / num_steps)[:, None]
  inner = karras_between(t[None], r[None], fraction, rho)
  return integrate(drift, x, jnp.where(fraction == 0, t[None], jnp.where(fraction == 1, r[None], inner)))


def trajectories(x: Array, z: Array, t: Array, noise: NoiseRange, drift: Drift | None) -> Trajectories:
  """Return the trajectories through x_t = x + t z: "adjacent", where r is one grid interval below t,
  and "whole", where r = sigma_min.

  Args:
    x: Held-out images in [-1, 1], [B,H,W,C].
    z: Standard normal.
    t: [B], in (sigma_min, sigma_max].
    noise: The model's range.
    drift: Of a teacher. None: x_r = x + r z, the Monte Carlo estimate, which is on the trajectory only in
      expectation given x_t and to first order in t - r. Even the exact consistency function then has an
      error, from the estimate's variance; "whole" is then the distance of f(x_t, t)
      from the image the noise was added to.
  """
  x_t = x + append_dims(t, x) * z

  def later(r: Array, num_steps: int) -> tuple[Array, Array]:
    return (x + append_dims(r, x) * z if drift is None else follow(drift, x_t, t, r, num_steps, noise.rho)), r

  end = jnp.full_like(t, noise.sigma_min)
  return Trajectories(
    x_t, t, {"adjacent": later(level_below(t, noise), ADJACENT_STEPS), "whole": later(end, WHOLE_STEPS)}
  )


def errors(f: Denoiser, points: Trajectories) -> dict[str, Array]:
  """Return |f(x_t, t) - f(x_r, r)| for every further point, the root mean square over pixels, [B].

  >>> x = jnp.zeros((1, 1, 1, 2))
  >>> errors(lambda x, sigma: x, Trajectories(x, jnp.ones(1), {"end": (x + 3, jnp.ones(1))}))["end"].tolist()
  [3.0]
  """
  start = f(points.x_t, points.t)
  rms = lambda difference: jnp.sqrt(jnp.mean(jnp.square(difference).reshape(difference.shape[0], -1), axis=1))
  return {name: rms(start - f(*point)) for name, point in points.later.items()}
