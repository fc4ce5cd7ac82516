"""Training objectives, one file each; `OBJECTIVES` maps the name in `config.objective.name` to its class."""

from cm_jax.objectives.consistency import Consistency
from cm_jax.objectives.continuous import Continuous
from cm_jax.objectives.denoising import Denoising
from cm_jax.objectives.progressive import Progressive
from cm_jax.objectives.scm import Scm
from cm_jax.objectives.targets import TARGETS
from cm_jax.types import Objective

__all__ = ["OBJECTIVES", "TARGETS"]

OBJECTIVES: dict[str, type[Objective]] = {
  "denoising": Denoising,
  "consistency": Consistency,
  "continuous": Continuous,
  "progressive": Progressive,
  "scm": Scm,
}
