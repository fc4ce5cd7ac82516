"""Configs small enough for a test: a toy network on the digits, every objective of the examples."""

import ml_collections

from cm_jax.config import default
from tests.examples import BATCH, EXAMPLES

_OBJECTIVES = EXAMPLES["objective"]
CT, CD, ECT = (_OBJECTIVES[name] for name in ("consistency", "consistency:cd", "consistency:ect"))
CONTINUOUS, PROGRESSIVE, SCT, EDM = (
  _OBJECTIVES[name] for name in ("continuous", "progressive", "scm", "denoising")
)


def config(objective: dict | None = None, **run: int) -> ml_collections.ConfigDict:
  """Return a config that trains in seconds; `run` overrides keys of `config.run`."""
  result = default()
  result.batch_size = BATCH
  result.network = EXAMPLES["network"]["toy"]
  result.optimizer.warmup_images = 0
  result.optimizer.learning_rate = 3e-3
  result.averages = {"ema": EXAMPLES["decay"]["constant"]}
  stops = {
    "num_steps": 6,
    "log_every": 1,
    "checkpoint_every": 3,
    "sample_every": 1000,
    "num_samples": 0,
    **run,
  }
  result.run.update(stops)
  result.run.sample_every = 1000
  if objective is not None:
    result.objective = objective
    needs_edm = objective["name"] in ("scm", "progressive", "denoising")
    result.precond = {"name": "edm" if needs_edm else "boundary"}
    result.sampler = {"name": "multistep", "sigmas": (80.0,)}
  return result
