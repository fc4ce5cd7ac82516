"""Noise-level bins of the logged loss, roughly half a decade wide.

The loss of a consistency model is unreadable without them: N(k) and the mixture of noise levels move it more
than progress does.
"""

import itertools

import jax.numpy as jnp

from cm_jax.types import Array

BIN_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def bin_names(quantity: str = "loss") -> list[str]:
  """Return the metric names of a quantity in the noise-level bins.

  >>> bin_names()[0], bin_names("tangent_norm")[-1]
  ('loss_sigma_0-0.03', 'tangent_norm_sigma_10-inf')
  """
  edges = ("0", *(f"{edge:g}" for edge in BIN_EDGES), "inf")
  return [f"{quantity}_sigma_{low}-{high}" for low, high in itertools.pairwise(edges)]


def bin_index(noise_level: Array) -> Array:
  """Return the bin of each noise level, int32 [B].

  >>> bin_index(jnp.array([0.01, 0.05, 80.0])).tolist()
  [0, 1, 6]
  """
  return jnp.searchsorted(jnp.asarray(BIN_EDGES, noise_level.dtype), noise_level)
