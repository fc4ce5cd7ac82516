"""Post-hoc averages (EDM2 appendix C): an average of any width from stored snapshots of two others.

An average with power-function profile weighs the parameters at time tau by p(tau) ~ tau^gamma up to its own
time t; its relative width is sigma_rel = std(p)/t. Everything here is float64 on the host;
times are in any one unit (steps or images).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cm_jax.errors import UserError

Floats = NDArray[np.float64]


def exponent(sigma_rel: ArrayLike) -> Floats:
  """Return gamma: the largest root of g^3 + 7 g^2 + (16 - s^-2) g + (12 - s^-2), s the width (EDM2 eq. 126).

  >>> np.round(exponent([0.05, 0.1]), 2).tolist()
  [16.97, 6.94]

  Raises:
    UserError: Not a number, or outside (0, 0.289): wider than the uniform profile.
  """
  given = np.asarray(sigma_rel)
  widths = given.astype(np.float64) if given.dtype.kind in "fiu" else np.full(1, np.nan)
  if not ((widths > 0) & (widths < 12**-0.5)).all():
    raise UserError("sigma_rel", sigma_rel, "a relative width between 0 and 0.289")
  roots = [np.roots([1, 7, 16 - s**-2, 12 - s**-2]).real.max() for s in widths.ravel()]
  return np.reshape(roots, widths.shape).astype(np.float64)


def width(gamma: ArrayLike) -> Floats:
  """Return sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) (EDM2 eq. 124): undoes `exponent`.

  >>> np.round(width(exponent(0.05)), 6).tolist()
  0.05
  """
  g = np.asarray(gamma, np.float64)
  return np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def decay(sigma_rel: ArrayLike, time: ArrayLike, step: float = 1.0) -> Floats:
  """Return the decay (1 - step/time)^(gamma + 1) of an update of length `step` up to `time` (EDM2 eq. 127).

  >>> np.round(decay(0.05, 100.0), 4).tolist()
  0.8347
  """
  return (1 - step / np.asarray(time, np.float64)) ** (exponent(sigma_rel) + 1)


def response(time: ArrayLike, sigma_rel: ArrayLike, length: int) -> Floats:
  """Return the weights p(0..length-1) of averages that stand at `time`, one column each, with sum 1.

  >>> response([2], [0.1], 4).round(3).tolist()
  [[0.0], [0.008], [0.992], [0.0]]
  """
  tau, stands = np.arange(length, dtype=np.float64)[:, None], np.asarray(time, np.float64)[None]
  weights = np.where(tau <= stands, (tau / stands) ** exponent(sigma_rel)[None], 0)
  return weights / weights.sum(0, keepdims=True)


def correlation(time_a: ArrayLike, gamma_a: ArrayLike, time_b: ArrayLike, gamma_b: ArrayLike) -> Floats:
  """Return the inner product of the profiles of two averages (EDM2 eq. 145), elementwise.

  >>> correlation(1.0, 1.0, 1.0, 1.0).round(4).tolist()
  1.3333
  """
  t_a, g_a, t_b, g_b = (np.asarray(value, np.float64) for value in (time_a, gamma_a, time_b, gamma_b))
  ratio = (t_a / t_b) ** np.where(t_a < t_b, g_b, -g_a)
  return (g_a + 1) * (g_b + 1) * ratio / ((g_a + g_b + 1) * np.maximum(t_a, t_b))


def coefficients(
  times: ArrayLike, sigma_rels: ArrayLike, wanted_times: ArrayLike, wanted_sigma_rels: ArrayLike
) -> Floats:
  """Return how much of each snapshot makes each wanted average: least squares of profiles (EDM2 algorithm 3).

  Args:
    times, sigma_rels: Of the stored snapshots, [S].
    wanted_times, wanted_sigma_rels: Of the averages to make, [W].

  Returns:
    [S, W]; every column has sum 1.

  >>> coefficients([10, 20], [0.1, 0.1], [20], [0.1]).round(6).tolist()
  [[0.0], [1.0]]
  """
  have, want = exponent(sigma_rels), exponent(wanted_sigma_rels)
  t, u = np.asarray(times, np.float64), np.asarray(wanted_times, np.float64)
  among = correlation(t[:, None], have[:, None], t[None], have[None])
  across = correlation(t[:, None], have[:, None], u[None], want[None])
  solution = np.linalg.solve(among, across)
  return solution / solution.sum(0, keepdims=True)


def profile_error(
  times: ArrayLike, sigma_rels: ArrayLike, wanted_time: float, wanted_sigma_rel: float, weights: ArrayLike
) -> float:
  """Return how far a sum of stored profiles is from the wanted one: ||sum_i x_i p_i - q|| / ||q||.

  0 is exact. What it leaves out is rounding: an error of the snapshots is multiplied by the size of the
  weights.

  Args:
    times, sigma_rels: Of the stored snapshots, [S].
    wanted_time, wanted_sigma_rel: Of the average that is made.
    weights: x, [S], a column of `coefficients`.

  >>> weights = coefficients([10, 20], [0.1, 0.1], [20], [0.12])[:, 0]
  >>> round(profile_error([10, 20], [0.1, 0.1], 20, 0.12, weights), 3)
  0.171
  """
  # The wanted profile is one more, with weight -1: then the norm is that of one sum.
  t = np.append(np.asarray(times, np.float64), wanted_time)
  gamma = np.append(exponent(sigma_rels), exponent(wanted_sigma_rel))
  x = np.append(np.asarray(weights, np.float64), -1)
  inner = correlation(t[:, None], gamma[:, None], t[None], gamma[None])
  return float(np.sqrt(max(x @ inner @ x, 0) / inner[-1, -1]))
