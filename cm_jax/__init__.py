"""cm_jax: consistency models in JAX.

Keys of the papers that docstrings cite:
  CM    Song, Dhariwal, Chen, Sutskever 2023, Consistency Models (arXiv 2303.01469)
  iCT   Song, Dhariwal 2023, Improved Techniques for Training Consistency Models (arXiv 2310.14189)
  ECT   Geng, Pokle, Luo, Lin, Kolter 2024, Consistency Models Made Easy (arXiv 2406.14548)
  sCM   Lu, Song 2024, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models
        (arXiv 2410.11081)
  EDM   Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space of Diffusion-Based Generative Models
        (arXiv 2206.00364)
  EDM2  Karras et al. 2023, Analyzing and Improving the Training Dynamics of Diffusion Models
        (arXiv 2312.02696)
  ADM   Dhariwal, Nichol 2021, Diffusion Models Beat GANs on Image Synthesis (arXiv 2105.05233)
Code that is named: jcm = openai/consistency_models_cifar10, OpenAI = openai/consistency_models.
"""

import importlib
from typing import Any

from cm_jax.version import __version__ as __version__

# The public names by the module that holds them: a name here is `from cm_jax import NAME`,
# loaded on first use.
_PUBLIC = {
  "cm_jax.assembly": ("assemble", "build", "complete", "load_model"),
  "cm_jax.config": ("default_config",),
  "cm_jax.data.sources": ("open_source",),
  "cm_jax.errors": ("UserError",),
  "cm_jax.evaluation.bits": ("bits",),
  "cm_jax.evaluation.evaluate": ("evaluate", "evaluate_images"),
  "cm_jax.evaluation.search": ("search",),
  "cm_jax.models": ("Experiment", "Method", "Model"),
  "cm_jax.networks": ("NETWORKS",),
  "cm_jax.objectives": ("OBJECTIVES",),
  "cm_jax.sampling": ("SAMPLERS",),
  "cm_jax.sampling.ablation": ("Ablation",),
  "cm_jax.sampling.choose": ("choose_samplers",),
  "cm_jax.sampling.editing": ("edit",),
  "cm_jax.sampling.generate": ("generate", "make_generator"),
  "cm_jax.sampling.guidance": ("guided",),
  "cm_jax.sampling.images": ("sample",),
  "cm_jax.sampling.likelihood": ("Likelihood",),
  "cm_jax.sampling.multistep": ("Multistep",),
  "cm_jax.sampling.ode": ("Ancestral", "Dpm2", "Euler", "Heun"),
  "cm_jax.sampling.step_search": ("StepSearch",),
  "cm_jax.storage.pictures": ("save_grid", "to_pil"),
  "cm_jax.storage.weights": ("save_weights",),
  "cm_jax.training.loop": ("train",),
  "cm_jax.types": (
    *("Condition", "Denoiser", "FlowMap", "NoiseRange", "Objective", "Preconditioned", "Sampler"),
    "TrainState",
  ),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_WHERE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
  # Loaded on first use: `python -m cm_jax --help` and a config file need not wait for JAX.
  if name not in _WHERE:
    raise AttributeError(f"module 'cm_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
