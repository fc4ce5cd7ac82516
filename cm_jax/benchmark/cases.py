"""What `cm_jax benchmark` compares: every objective's train step on one network with made-up data.

`CASES` are the methods of the papers. Another objective is measured by its own name, with its defaults.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from cm_jax.config import default
from cm_jax.errors import UserError, one_of


@dataclasses.dataclass(frozen=True)
class Workload:
  """A network and what it is fed.

  Attributes:
    network: The `config.network` section.
    image_shape: (H, W, C).
    batch_size: By default.
  """

  network: Mapping[str, Any]
  image_shape: tuple[int, int, int]
  batch_size: int


@dataclasses.dataclass(frozen=True)
class Case:
  """An objective.

  Attributes:
    objective: The `config.objective` section.
    precond: The student's preconditioning; a teacher has EDM's.
  """

  objective: Mapping[str, Any]
  precond: str = "boundary"


_DDPMPP = {"name": "songunet", "num_blocks": 1, "dropout": 0.0}
WORKLOADS = {
  "digits8": Workload(
    {**_DDPMPP, "model_channels": 16, "channel_mult": (1, 3), "attn_resolutions": ()},
    image_shape=(8, 8, 1),
    batch_size=64,
  ),
  "digits16": Workload(
    {**_DDPMPP, "model_channels": 32, "channel_mult": (2, 2), "attn_resolutions": (8,)},
    image_shape=(16, 16, 3),
    batch_size=128,
  ),
  "small32": Workload(
    {**_DDPMPP, "model_channels": 32, "channel_mult": (2, 2, 2), "attn_resolutions": (16,)},
    image_shape=(32, 32, 3),
    batch_size=64,
  ),
  "small": Workload(
    {**_DDPMPP, "model_channels": 32, "channel_mult": (2, 2), "attn_resolutions": (16,)},
    image_shape=(32, 32, 3),
    batch_size=32,
  ),
  "cifar": Workload({"name": "songunet", "dropout": 0.0}, image_shape=(32, 32, 3), batch_size=16),
}

BASE = "denoising"  # what costs are relative to

# Durations are left to follow the run's length, which is longer than any benchmark.
_CT = {
  "name": "consistency",
  "drift": "monte_carlo",
  "solver": "euler",
  "pairs": {"name": "karras", "scales": {"name": "progressive", "s0": 2, "s1": 150}},
  "distance": "l2",
  "weight": "uniform",
  "target": {"name": "curriculum_ema", "s0": 2, "mu0": 0.9},
}
_CD = {
  **_CT,
  "drift": "teacher",
  "pairs": {"name": "karras", "scales": {"name": "constant", "value": 18}},
  "target": {"name": "ema"},
}
_ECT = {
  **_CT,
  "pairs": {"name": "continuous", "stages": {"name": "stages", "num_stages": 8}},
  "distance": "pseudo_huber",
  "weight": "inverse_gap",
  "target": "stop_gradient",
}
_CONTINUOUS = {"name": "continuous", "distance": "l2", "stop_gradient": True}

CASES: dict[str, Case] = {
  "denoising": Case({"name": "denoising"}, "edm"),
  "ct": Case(_CT),
  "ect": Case(_ECT, "ect"),
  "cd_euler": Case({**_CD, "solver": "euler"}),
  "cd_heun": Case({**_CD, "solver": "heun"}),
  "progressive": Case({"name": "progressive", "scales": {"name": "halving", "first": 1024}}, "edm"),
  "continuous_ct": Case({**_CONTINUOUS, "drift": "monte_carlo"}),
  "continuous_cd": Case({**_CONTINUOUS, "drift": "teacher"}),
  "sct": Case({"name": "scm", "drift": "monte_carlo"}, "edm"),
  "scd": Case({"name": "scm", "drift": "teacher"}, "edm"),
}


def case_of(name: str) -> Case:
  """Return a case by name: one of `CASES`, or an objective with its defaults.

  >>> case_of("sct").precond
  'edm'

  Raises:
    UserError: It is neither.
  """
  from cm_jax.objectives import OBJECTIVES

  if name in CASES:
    return CASES[name]
  if name not in OBJECTIVES:
    raise UserError("only", name, one_of({*CASES, *OBJECTIVES}, name))
  return Case({"name": name}, "edm" if OBJECTIVES[name].trains == "diffusion" else "boundary")


def config_of(case: Case, workload: Workload, batch_size: int) -> ml_collections.ConfigDict:
  """Return the config of a case on a workload: Adam, one average beside the objective's own, the guard."""
  config = default()
  config.batch_size = batch_size
  config.network, config.objective = dict(workload.network), dict(case.objective)
  config.precond = {"name": case.precond}
  config.averages = {"ema": {"name": "constant", "mu": 0.9999}}
  return config
