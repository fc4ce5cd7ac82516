"""Weights lambda of the consistency objectives: functions (t, r, sigma_data) -> [B],
with t > r the two noise levels, [B].

All are evaluated at t, the noisier level, as both official codes do.
"""

from collections.abc import Callable

import jax.numpy as jnp

from cm_jax.types import Array

Weight = Callable[[Array, Array, float], Array]


def uniform(t: Array, r: Array, sigma_data: float) -> Array:
  """Return 1 (CM section 4: lambda = 1 works best for CD)."""
  return jnp.ones_like(t)


def snr(t: Array, r: Array, sigma_data: float) -> Array:
  """Return 1/t^2, the signal-to-noise ratio (OpenAI `snr`)."""
  return t**-2


def snr_plus_one(t: Array, r: Array, sigma_data: float) -> Array:
  """Return 1/t^2 + 1 (OpenAI `snr+1`, jcm `snrp1`)."""
  return t**-2 + 1


def truncated_snr(t: Array, r: Array, sigma_data: float) -> Array:
  """Return max(1/t^2, 1) (OpenAI `truncated-snr`)."""
  return jnp.maximum(t**-2, 1)


def karras(t: Array, r: Array, sigma_data: float) -> Array:
  """Return 1/t^2 + 1/sigma_data^2 = 1/c_out^2 of EDM's preconditioning (EDM table 1; OpenAI `karras`;
  ECT `snrpk`)."""
  return t**-2 + sigma_data**-2


def trigflow(t: Array, r: Array, sigma_data: float) -> Array:
  """Return t/sigma_data + sigma_data/t = 1/(sin a cos a) at TrigFlow's angle a = arctan(t/sigma_data).

  With it the l2 pull of a continuous-time consistency model on its network is sCM's tangent,
  which has a like size at every level.
  """
  return t / sigma_data + sigma_data / t


def inverse_gap(t: Array, r: Array, sigma_data: float) -> Array:
  """Return 1/(t - r) (iCT section 3.3, ECT section 3)."""
  return 1 / (t - r)


WEIGHTS: dict[str, Weight] = {
  "uniform": uniform,
  "snr": snr,
  "snr_plus_one": snr_plus_one,
  "truncated_snr": truncated_snr,
  "karras": karras,
  "trigflow": trigflow,
  "inverse_gap": inverse_gap,
}
