"""Training objectives, one file each; `OBJECTIVES` maps the name in `config.objective.name` to its class."""

from cm_jax.objectives.consistency import Consistency
from cm_jax.objectives.denoising import Denoising

OBJECTIVES = {"denoising": Denoising, "consistency": Consistency}
