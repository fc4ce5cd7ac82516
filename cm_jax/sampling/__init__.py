"""Sampling; `SAMPLERS` maps the name in `config.sampler.name` to its class."""

from cm_jax.sampling.samplers import Heun, Multistep

SAMPLERS = {"multistep": Multistep, "heun": Heun}
