"""One example of every registry entry: the section a config would hold. A new entry is one line here.

From this table come the configs of the tests (`tiny`), the objectives that are trained in the loop, and what
the property tests make. Durations are those of a batch of 16.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cm_jax.assembly.components import construct
from cm_jax.cli import COMMANDS
from cm_jax.data.sources import SOURCES
from cm_jax.diffusion.curriculum import CURRICULA, constant
from cm_jax.diffusion.distances import DISTANCES
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import LEVELS
from cm_jax.diffusion.pairs import PAIRS
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.diffusion.solvers import SOLVERS
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.evaluation.features import FEATURES
from cm_jax.evaluation.metrics import METRICS
from cm_jax.networks import NETWORKS
from cm_jax.objectives import OBJECTIVES, TARGETS
from cm_jax.sampling import SAMPLERS
from cm_jax.training.averages.decays import DECAYS
from cm_jax.training.optim import OPTIMIZERS
from cm_jax.training.schedules import SCHEDULES
from cm_jax.types import NoiseRange

BATCH = 16  # of the durations below
_GROWING = {"name": "progressive", "s0": 2, "s1": 6, "total_images": BATCH * 12}
_HUBER = {"name": "pseudo_huber", "c": 0.03}
_UNET = {"channel_mult": (1, 2), "num_blocks": 1}

CT = {
  "name": "consistency",
  "drift": "monte_carlo",
  "solver": "euler",
  "pairs": {"name": "karras", "scales": _GROWING},
  "distance": _HUBER,
  "weight": "inverse_gap",
  "target": {"name": "curriculum_ema", "s0": 2, "mu0": 0.9, "convention": "paper"},
}

# The name of an entry, and where an entry is worth several examples, ENTRY:VARIANT.
EXAMPLES: dict[str, dict[str, Any]] = {
  "objective": {
    "denoising": {"name": "denoising", "reduction": "mean", "uncertainty": True},
    "consistency": CT,
    "consistency:cd": {**CT, "drift": "teacher", "solver": "heun", "target": {"name": "ema", "mu": 0.95}},
    "consistency:ect": {
      **CT,
      "pairs": {
        "name": "continuous",
        "stages": {"name": "stages", "stage_images": BATCH * 3, "num_stages": 4},
      },
      "target": {"name": "stop_gradient"},
    },
    "continuous": {"name": "continuous", "drift": "monte_carlo", "distance": {"name": "l2"}},
    "progressive": {
      "name": "progressive",
      "scales": {"name": "halving", "first": 4, "stage_images": BATCH * 2, "last_stage_images": BATCH * 4},
    },
    "scm": {"name": "scm", "drift": "monte_carlo", "warmup_images": BATCH * 4},
    "scm:scd": {"name": "scm", "drift": "teacher", "warmup_images": BATCH * 4},
  },
  "network": {
    "songunet": {"name": "songunet", "model_channels": 8, **_UNET, "attn_resolutions": (4,)},
    "adm": {"name": "adm", "model_channels": 32, **_UNET, "attn_resolutions": ()},
    "edm2": {"name": "edm2", "model_channels": 16, **_UNET, "attn_resolutions": (4,), "channels_per_head": 8},
    "openai_unet": {
      "name": "openai_unet", "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1,
      "attention_resolutions": (2,),
    },
    "jcm_ncsnpp": {
      "name": "jcm_ncsnpp", "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,),
    },
    "small_unet": {"name": "small_unet", "channel_mult": (1, 2)},
    "dit": {"name": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2},
    "toy": {"name": "toy", "width": 8},
  },
  "precond": {name: {"name": name} for name in ("edm", "trigflow", "boundary", "ect", "vp", "ve", "iddpm")},
  "levels": {name: {"name": name} for name in ("lognormal", "karras", "vp", "ve")},
  "pairs": {
    "karras": {"name": "karras", "scales": {"name": "constant", "value": 8}},
    "lognormal": {"name": "lognormal", "scales": {"name": "constant", "value": 8}},
    "continuous": {"name": "continuous", "stages": {"name": "stages", "stage_images": 160, "num_stages": 4}},
  },
  "curriculum": {
    "constant": {"name": "constant", "value": 18},
    "progressive": {"name": "progressive", "s0": 2, "s1": 20, "total_images": 1600},
    "doubling": {"name": "doubling", "s0": 2, "s1": 20, "total_images": 1600},
    "stages": {"name": "stages", "stage_images": 160, "num_stages": 4},
    "halving": {"name": "halving", "first": 8, "stage_images": 160},
  },
  "distance": {"l1": "l1", "l2": "l2", "linf": "linf", "pseudo_huber": _HUBER},
  "drift": {"teacher": "teacher", "monte_carlo": "monte_carlo"},
  "target": {
    "stop_gradient": "stop_gradient",
    "ema": {"name": "ema", "mu": 0.95},
    "curriculum_ema": {"name": "curriculum_ema", "s0": 2, "mu0": 0.9},
  },
  "sampler": {
    "multistep": {"name": "multistep", "sigmas": (80.0, 0.8)},
    **{name: {"name": name, "num_steps": 5} for name in ("heun", "euler", "dpm2", "ancestral", "ablation")},
  },
  "optimizer": {name: {"name": name, "learning_rate": 3e-3} for name in ("adam", "adamw", "radam")},
  "decay": {
    "constant": {"name": "constant", "mu": 0.9},
    "half_life": {"name": "half_life", "half_life_images": BATCH * 20, "ramp_up": 0.2},
    "power": {"name": "power", "sigma_rel": 0.1},
  },
  "schedule": {name: name for name in ("constant", "cosine", "linear", "inverse_sqrt")},
  "solver": {"heun": "heun", "euler": "euler"},
  "weight": {
    name: name
    for name in ("uniform", "snr", "snr_plus_one", "truncated_snr", "karras", "trigflow", "inverse_gap")
  },
  # The number of features.
  "features": {
    "digits": 64, "inception": 2048, "inception-64": 64, "inception-192": 192, "inception-768": 768,
    "dinov2-b": 768, "dinov2-l": 1024,
  },
  "metric": {
    name: name for name in ("fd", "class_entropy", "nn_distance", "fid", "sfid", "is", "kid", "prdc")
  },
  # What follows the scheme; PATH is made by the test that opens it.
  "source": {
    "digits": "digits:train", "folder": "folder:PATH", "latents": "latents:PATH", "lmdb": "lmdb:PATH",
    "npz": "npz:PATH.npz", "python": "python:MODULE:FUNCTION", "tfds": "tfds:NAME:train:PATH",
    "zip": "zip:PATH.zip",
  },
  # What a command is at least given, so that it says what it lacks and not that a flag is wrong.
  "command": dict.fromkeys(COMMANDS, ()),
}  # fmt: skip

REGISTRIES: dict[str, Mapping[str, Any]] = {
  "objective": OBJECTIVES,
  "network": NETWORKS,
  "precond": PRECONDS,
  "levels": LEVELS,
  "pairs": PAIRS,
  "curriculum": CURRICULA,
  "distance": DISTANCES,
  "drift": DRIFTS,
  "target": TARGETS,
  "sampler": SAMPLERS,
  "optimizer": OPTIMIZERS,
  "decay": DECAYS,
  "schedule": SCHEDULES,
  "solver": SOLVERS,
  "weight": WEIGHTS,
  "features": FEATURES,
  "metric": METRICS,
  "source": SOURCES,
  "command": COMMANDS,
}


def make(kind: str, name: str, **given: Any) -> Any:
  """Return the component of an example section, as a config would make it."""
  fields = {"noise": NoiseRange(), "length": 100, **given}
  return construct(REGISTRIES[kind], EXAMPLES[kind][name], kind, BATCH, **fields)


def scales() -> Callable:
  """Return an N(k) to go with what follows one."""
  return constant(8)


def entry(name: str) -> str:
  """Return the registry's name of an example.

  >>> entry("consistency:cd")
  'consistency'
  """
  return name.partition(":")[0]
