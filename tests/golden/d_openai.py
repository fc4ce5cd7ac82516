"""OpenAI's samplers on a Gaussian mixture: every network call, what the callback is told, and the result."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.sampling.ode import Ancestral, Dpm2, Euler, Heun
from cm_jax.types import Denoiser, NoiseRange
from tests.golden.d_samplers import Levels, float64, levels_at, mixture, trace, yield_trace
from tests.golden.losses import real
from tests.golden.networks import nchw
from tests.golden.options import UnknownOption, choice, read
from tests.golden.runner import Case, Handler, Result, each

OF_KARRAS_DENOISER = ("sigma_data", "sigma_min", "sigma_max", "weight_schedule", "distillation", "loss_norm")


def is_openai(case: Case) -> bool:
  return case.meta.get("cls") == "karras_sample"


def run_openai(case: Case) -> Iterator[Result]:
  """With the clipping of D that is OpenAI's default, and of the result, which is not optional there."""

  def compute(run: str, given: dict) -> Iterator[Result]:
    known = read(given, run, steps=None, sampler="heun", clip_denoised=True, progress=False, **_KARRAS_SAMPLE)
    draws, denoiser = real(case.input("noise")).transpose(0, 1, 3, 4, 2), mixture(case)
    kinds = {kind: kind for kind in ("heun", "dpm", "ancestral", "euler", "progdist", "onestep", "multistep")}
    kind = choice(known.sampler, kinds, f"{run}: sampler")
    sampler = _openai_sampler(case, kind, known)
    is_consistency = isinstance(sampler, Levels)
    clipped = lambda x, sigma: jnp.clip(denoiser(x, sigma), -1, 1)
    f = clipped if is_consistency and known.clip_denoised else denoiser
    yield from yield_trace(case, run, sampler, f, draws, lambda x: jnp.clip(x, -1, 1))
    if not is_consistency:
      yield from _callbacks(case, run, kind, sampler, denoiser, draws)
    # how many its generator gave; which draw is whose, call_x shows
    yield Result(f"{run}__num_noise_draws", is_input=True)

  with float64():
    yield from each(case.meta["runs"], compute)


_KARRAS_SAMPLE = {
  "sigma_min": 0.002,
  "sigma_max": 80,
  "rho": 7.0,
  "ts": None,
  "model_kwargs": None,
  "s_churn": 0.0,
  "s_tmin": 0.0,
  "s_tmax": math.inf,
  "s_noise": 1.0,
}


def _openai_sampler(case: Case, kind: str, known: Any) -> Any:
  if known.model_kwargs:
    raise UnknownOption(f"model_kwargs = {known.model_kwargs!r} is not known here")
  noise, steps, clip = (
    NoiseRange(known.sigma_min, known.sigma_max, rho=known.rho),
    known.steps,
    known.clip_denoised,
  )
  if kind == "onestep":
    return Levels((noise.sigma_max,), noise.sigma_max, noise.sigma_min, clip)
  if kind == "multistep":
    # its indices are of the grid with the diffusion's rho, not with that of the call
    ignored = dict.fromkeys(OF_KARRAS_DENOISER)
    rho = read(case.meta.get("kd_kwargs"), "kd_kwargs", rho=7.0, **ignored).rho
    levels, end = levels_at(known.ts, steps, dataclasses.replace(noise, rho=rho))
    return Levels(levels, noise.sigma_max, noise.sigma_min, clip, end=end)
  top = None if known.s_tmax is None else float(known.s_tmax)
  churn = {"S_churn": known.s_churn, "S_min": known.s_tmin, "S_max": top, "S_noise": known.s_noise}
  if kind in ("heun", "dpm"):  # the others take no churn, there neither
    return (Heun if kind == "heun" else Dpm2)(noise, steps, clip, **churn)
  if kind == "ancestral":
    return Ancestral(noise, steps, clip)
  if kind == "progdist":
    return Euler(noise, steps, clip)
  return Euler(noise, steps - 1, clip, denoise=True) if steps > 1 else Heun(noise, 1, clip)


def _callbacks(
  case: Case, run: str, kind: str, sampler: Any, denoiser: Denoiser, draws: jax.Array
) -> Iterator[Result]:
  """Yield what the peer tells its callback: sigma at each step; at the last, x before it and D there."""
  if f"{run}__cb_sigma" not in case.outputs():
    return
  _, calls, levels = trace(sampler, denoiser, draws)
  last = range(0, len(levels), {"heun": 2, "dpm": 2}.get(kind, 1))[-1]
  yield Result(f"{run}__cb_sigma", np.asarray(sampler.levels()[:-1]), dtype="float64")
  x = jnp.asarray(calls[last])  # after the step's churn
  D = sampler.clipped(denoiser)(x, jnp.full(len(x), levels[last]))
  yield Result(f"{run}__cb_last_x", nchw(x), dtype="float64")
  yield Result(f"{run}__cb_last_denoised", nchw(D), dtype="float64")


HANDLERS = [Handler(is_openai, run_openai, "samplers", ("runs", "denoiser", "kd_kwargs"))]
