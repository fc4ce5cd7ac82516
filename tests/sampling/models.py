"""Models for the tests of sampling: any network in the Model that a run would give."""

import jax.numpy as jnp

from cm_jax.models import Model
from cm_jax.types import NoiseRange

GAUSSIAN = {"net": {"mean": jnp.float32(0.2), "std": jnp.float32(0.5)}}  # of `GaussianPreconditioned`


def model_of(preconditioned, shape=(4, 4, 1), **fields) -> Model:
  """Return a network as a model; `fields` are further ones of a Model."""
  defaults = {
    "params": GAUSSIAN, "kind": "consistency", "noise": NoiseRange(), "num_classes": 0, "network": {},
    "precond": {},
  }  # fmt: skip
  return Model(preconditioned=preconditioned, image_shape=shape, **{**defaults, **fields})
