"""The grids of noise levels that samplers walk along: `GRIDS[name](num_points, noise)`, descending.

"karras" is over the model's own range, in JAX's type; the others are earlier works' time steps over a range,
by default the one these trained for (EDM table 1), on the host in float64.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.grids import karras_between, karras_grid, vp_sigma
from cm_jax.diffusion.precond import IDDPM
from cm_jax.errors import UserError
from cm_jax.types import Array, Domain, NoiseRange

Span = tuple[float, float]  # sigma_min, sigma_max
EPSILON_S = 1e-3  # smallest time of the VP grid
RANGES = {
  "ve": (0.02, 100.0),
  "iddpm": (0.002, 81.0),
  "edm": (0.002, 80.0),
}  # VP's depends on the smallest time
EARLIER = ("vp", *RANGES)  # grids of earlier works, with a range each; any other is over the model's own


def karras(num_points: int, noise: NoiseRange, span: Span | None = None) -> Array:
  """Return the Karras grid from sigma_max to sigma_min (EDM eq. 5); one point is sigma_max.

  >>> karras(2, NoiseRange(sigma_min=0.5, sigma_max=2.0)).tolist(), karras(1, NoiseRange()).tolist()
  ([2.0, 0.5], [80.0])
  """
  if span is not None:
    noise = dataclasses.replace(noise, sigma_min=span[0], sigma_max=span[1])
  return karras_grid(num_points, noise) if num_points > 1 else jnp.full((1,), noise.sigma_max)


def vp(
  num_points: int, noise: NoiseRange, span: Span | None = None, epsilon_s: float = EPSILON_S
) -> np.ndarray:
  """Return sigma(t) of the variance-preserving process at times evenly from 1 to `epsilon_s`.

  >>> [round(level, 3) for level in vp(2, NoiseRange()).tolist()]
  [152.167, 0.01]
  """
  times = 1 + _fractions(num_points) * (epsilon_s - 1)
  return vp_sigma(times, *vp_betas(span or trained_range("vp", epsilon_s), epsilon_s))


def trained_range(name: str, epsilon_s: float = EPSILON_S) -> Span:
  """Return the (sigma_min, sigma_max) that an earlier work trained for.

  >>> trained_range("ve")
  (0.02, 100.0)
  """
  return (vp_sigma(epsilon_s), vp_sigma(1.0)) if name == "vp" else RANGES[name]


def accepted(span: Span, noise: NoiseRange, domain: Domain | None) -> Span:
  """Return what of a range a network accepts: its domain, where it has one, else the model's range.

  >>> accepted((0.01, 152.2), NoiseRange(), None), accepted((0.01, 152.2), NoiseRange(), Domain(0.02, 100.0))
  ((0.01, 80.0), (0.02, 100.0))
  """
  low, high = (noise.sigma_min, noise.sigma_max) if domain is None else domain[:2]
  return max(span[0], low), min(span[1], high)


def rounded(levels: Any, domain: Domain | None) -> Any:
  """Return noise levels, an array of either kind, each as the nearest one that a network knows.

  >>> rounded(np.array([0.9, 3.0]), Domain(0.5, 4.0, (4.0, 1.0, 0.5))).tolist()
  [1.0, 4.0]
  """
  if domain is None or not domain.levels:
    return levels
  array = np if isinstance(levels, np.ndarray) else jnp
  known = array.asarray(domain.levels, levels.dtype)
  distance = array.abs(known.reshape((1,) * levels.ndim + known.shape) - levels[..., None])
  return known[array.argmin(distance, axis=-1)]


def vp_betas(span: Span, epsilon_s: float) -> tuple[float, float]:
  """Return the (beta_d, beta_min) whose sigma(epsilon_s) and sigma(1) are the ends of a range.

  >>> [round(beta, 6) for beta in vp_betas((vp_sigma(0.01), vp_sigma(1.0)), 0.01)]
  [19.9, 0.1]
  """
  low, high = (math.log1p(sigma**2) for sigma in span)
  beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
  return beta_d, high - beta_d / 2


def ve(num_points: int, noise: NoiseRange, span: Span | None = None) -> np.ndarray:
  """Return levels evenly spread in ln sigma, by default from 100 to 0.02.

  >>> [round(level, 3) for level in ve(3, NoiseRange()).tolist()]
  [100.0, 1.414, 0.02]
  """
  low, high = span or RANGES["ve"]
  return high * (low / high) ** _fractions(num_points)


def iddpm(
  num_points: int,
  noise: NoiseRange,
  span: Span | None = None,
  C_1: float = IDDPM.C_1,
  C_2: float = IDDPM.C_2,
  M: int = IDDPM.M,
) -> np.ndarray:
  """Return levels u_j of improved DDPM, evenly in j, by default inside 0.002 to 81.

  Raises:
    UserError: None of them is inside.

  >>> [round(level, 3) for level in iddpm(3, NoiseRange()).tolist()]
  [80.204, 1.0, 0.006]
  """
  low, high = span or RANGES["iddpm"]
  u = IDDPM(noise, C_1, C_2, M).levels()
  u = u[(u >= low) & (u <= high)]
  if not len(u):
    raise UserError("M", M, f"more levels: none is in {low:g} to {high:g}")
  return u[np.round((len(u) - 1) / max(num_points - 1, 1) * np.arange(num_points)).astype(int)]


def edm(num_points: int, noise: NoiseRange, span: Span | None = None) -> np.ndarray:
  """Return the Karras grid, by default from 80 to 0.002, with the rho of `noise`.

  >>> [round(level, 3) for level in edm(3, NoiseRange(sigma_max=10.0)).tolist()]
  [80.0, 2.515, 0.002]
  """
  low, high = span or RANGES["edm"]
  return karras_between(high, low, _fractions(num_points), noise.rho)


def _fractions(num_points: int) -> np.ndarray:
  return np.arange(num_points) / max(num_points - 1, 1)


GRIDS: dict[str, Callable[..., Any]] = {
  "karras": karras,
  "vp": vp,
  "ve": ve,
  "iddpm": iddpm,
  "edm": edm,
}
