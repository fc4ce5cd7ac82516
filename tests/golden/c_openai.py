"""OpenAI's UNet under its two preconditionings, attention, scalings and weights, full-size names."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import openai
from cm_jax.diffusion.grids import karras_grid
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.diffusion.solvers import ancestral_levels
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.networks.layers import positional_embedding
from cm_jax.networks.openai_unet import AttentionBlock
from cm_jax.types import Condition, NoiseRange
from tests.golden.a_edm import name_files, unit_params
from tests.golden.networks import (
  assemble,
  check_mode,
  evaluator,
  nchw,
  nhwc,
  reduced_precision,
  same_names,
  shaped,
)
from tests.golden.options import read
from tests.golden.runner import Case, Handler, Result

# what create_model makes of an image size (script_util.py), as facts
_MULTS = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
_PRECONDS = {"denoised_edm": "edm", "denoised_distill": "boundary"}


def is_network(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("UNetModel") and (case.path / "weights.npz").is_file()


def run_network(case: Case) -> Iterator[Result]:
  check_mode(case)
  x, sigma, y = nhwc(case.input("x")), jnp.asarray(case.input("sigma")), case.input("y")
  condition, outputs = Condition(None if y is None else jnp.asarray(y, jnp.int32)), case.outputs()
  checkpoints = {
    precond: openai.describe(case.kwargs, case.weights, precond) for precond in _PRECONDS.values()
  }
  if "unet" in outputs:
    preconditioned, params = assemble(checkpoints["edm"])
    c_in = 1 / jnp.sqrt(sigma**2 + 0.25)
    unet = jax.jit(lambda x, t: preconditioned.net(params["net"], x, t, condition))
    yield Result("unet", nchw(unet(c_in[:, None, None, None] * x, jnp.asarray(case.input("timesteps")))))
  for name, precond in _PRECONDS.items():
    D, F, _ = evaluator(checkpoints[precond])(x, sigma, condition)
    for output in (name, f"{name}_fp16attn"):
      if output in outputs:
        yield Result(output, nchw(D))
    if precond == "edm" and "model_output" in outputs:
      yield Result("model_output", nchw(F))
  yield from reduced_precision(case, checkpoints["boundary"], "denoised_distill", x, sigma, condition)


def is_names(case: Case) -> bool:
  return not case.meta and any("create_model_kwargs" in names for names in name_files(case).values())


def run_names(case: Case) -> Iterator[Result]:
  for what, names in name_files(case).items():
    arrays, kwargs = shaped(names["state_dict_shapes"]), constructor(names["create_model_kwargs"])
    yield from same_names(
      what, functools.partial(openai.describe, kwargs, arrays, "boundary"), names["n_params"]
    )
    inferred, _ = openai.infer(arrays)
    said = inferred.keys() - {"image_size", "num_head_channels"}  # these two no name or shape says
    differing = {key: (inferred[key], kwargs.get(key)) for key in said if kwargs.get(key) != inferred[key]}
    yield Result(
      f"{what}: what names and shapes say", passed=not differing, note=str(differing) if differing else ""
    )


def constructor(options: dict[str, Any]) -> dict[str, Any]:
  """Return UNetModel's arguments from create_model's: by resolution and image size, 1000 classes or none."""
  size = options["image_size"]
  kept = (
    "num_res_blocks",
    "num_heads",
    "num_heads_upsample",
    "num_head_channels",
    "use_scale_shift_norm",
    "resblock_updown",
    "dropout",
  )
  same = {key: options[key] for key in kept if key in options}
  mult = options.get("channel_mult") or _MULTS[size]
  return {
    "image_size": size,
    "in_channels": 3,
    "model_channels": options["num_channels"],
    "out_channels": 6 if options.get("learn_sigma") else 3,
    "attention_resolutions": sorted(
      size // int(side) for side in options["attention_resolutions"].split(",")
    ),
    "channel_mult": list(mult),
    "num_classes": 1000 if options.get("class_cond") else None,
    **same,
  }


def is_attention(case: Case) -> bool:
  return case.meta.get("cls") == "AttentionBlock"


def run_attention(case: Case) -> Iterator[Result]:
  """Evaluate attention blocks; the peer's half-precision variant differs from ours by its rounding only."""
  for name, kwargs in case.kwargs.items():
    known = read(kwargs, name, channels=None, num_heads=1, num_head_channels=-1, use_checkpoint=False)
    heads, channels = known.num_heads, known.num_head_channels
    module = AttentionBlock(heads if channels == -1 else kwargs["channels"] // channels)
    y = nchw(jax.jit(module.apply)({"params": unit_params(case, name)}, nhwc(case.input(f"{name}_x"))))
    for output in (f"{name}_y", f"{name}_y_legacyhalf"):
      if output in case.outputs():
        yield Result(output, y)


def is_scalings(case: Case) -> bool:
  return case.meta.get("cls") == "KarrasDenoiser"


def run_scalings(case: Case) -> Iterator[Result]:
  span = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
  # every weighting and both forms of the scalings are outputs: these choose none of them
  chosen = dict.fromkeys(("weight_schedule", "distillation", "loss_norm"))
  known = vars(read(case.kwargs, "kwargs", **span, **chosen))
  noise = NoiseRange(**{name: known[name] for name in span})
  sigma = jnp.asarray(case.input("sigma"), jnp.float32)
  scalings = {"std": EDM(noise)(sigma), "boundary": Boundary(noise)(sigma)}
  for name in case.outputs():
    if match := re.fullmatch(r"(std|boundary)_(c_\w+)", name):
      yield Result(name, getattr(scalings[match[1]], match[2]))
    elif name == "snr" or name.startswith("weight_"):
      key = name.removeprefix("weight_").replace("+1", "_plus_one").replace("-", "_")
      yield Result(name, WEIGHTS[key](sigma, sigma / 2, noise.sigma_data))
    elif match := re.fullmatch(r"sigmas_karras_n(\d+)", name):
      yield Result(name, np.append(karras_grid(int(match[1]), noise), 0))
    elif match := re.fullmatch(r"timestep_embedding_(\d+)", name):
      yield Result(name, positional_embedding(jnp.asarray(case.arrays["out_timesteps"]), int(match[1])))
  if "timesteps" in case.outputs():
    yield Result("timesteps", is_input=True)
  if "ancestral_down" in case.outputs():
    levels = jnp.sort(sigma[:-1])[::-1]
    down, up = ancestral_levels(levels[:-1], levels[1:])
    yield Result("ancestral_down", down)
    yield Result("ancestral_up", up)


HANDLERS = [
  Handler(is_network, run_network, "networks", ("kwargs", "mode")),
  Handler(is_names, run_names, "networks"),
  Handler(is_attention, run_attention, "networks", ("kwargs",)),
  Handler(is_scalings, run_scalings, "scalings", ("kwargs",)),
]
