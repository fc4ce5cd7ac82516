"""Sampling; `SAMPLERS` maps the name in `config.sampler.name` to its class."""

from cm_jax.sampling.ablation import Ablation
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Ancestral, Dpm2, Euler, Heun

SAMPLERS: dict[str, type] = {
  "multistep": Multistep,
  "heun": Heun,
  "euler": Euler,
  "dpm2": Dpm2,
  "ancestral": Ancestral,
  "ablation": Ablation,
}
