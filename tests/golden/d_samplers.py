"""ECT's, EDM's and OpenAI's samplers on a Gaussian mixture: every network call and the result."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.grids import karras_grid
from cm_jax.sampling.ablation import Ablation
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Ancestral, Dpm2, Euler, Heun
from cm_jax.types import Denoiser, NoiseRange, Sampler
from tests.golden.losses import images, real
from tests.golden.networks import nchw
from tests.golden.runner import Case, Handler, Result


@contextlib.contextmanager
def float64() -> Iterator[None]:
  """Float64 in every thread: callbacks run in others, which `jax.enable_x64` does not reach."""
  before = jax.config.jax_enable_x64
  jax.config.update("jax_enable_x64", True)
  try:
    yield
  finally:
    jax.config.update("jax_enable_x64", before)


def mixture(case: Case, prefix: str = "") -> Denoiser:
  """Return the exact denoiser of the case's mixture of two Gaussians (meta.json, `denoiser`)."""
  w, mu, s = (real(case.input(f"{prefix}gmm_{name}")) for name in ("w", "mu", "s"))
  mu = mu.transpose(0, 2, 3, 1)

  def denoise(x, sigma):
    variance = s[None] ** 2 + sigma[:, None] ** 2
    distance = jnp.sum((x[:, None] - mu[None]) ** 2, axis=(2, 3, 4))
    logits = jnp.log(w)[None] - 0.5 * x[0].size * jnp.log(variance) - 0.5 * distance / variance
    r = jax.nn.softmax(logits, axis=1)
    expand = lambda v: v[:, :, None, None, None]
    means = (
      expand(s[None] ** 2 * jnp.ones_like(variance)) * x[:, None] + expand(sigma[:, None] ** 2) * mu[None]
    ) / expand(variance)
    return jnp.sum(expand(r) * means, axis=1)

  return denoise


def trace(sampler: Sampler, denoiser: Denoiser, draws: jax.Array) -> tuple[jax.Array, np.ndarray, np.ndarray]:
  """Return (samples, the x of every network call, its noise level), with draws [K,B,H,W,C] for noise."""
  seen: list[tuple[np.ndarray, np.ndarray]] = []

  def watched(x, sigma):
    jax.debug.callback(
      lambda x, sigma: seen.append((np.asarray(x), np.asarray(sigma))), x, sigma, ordered=True
    )
    return denoiser(x, sigma)

  final = jax.jit(lambda: sampler(watched, lambda k, shape: draws[k], draws.shape[1:]))()
  jax.effects_barrier()
  return final, np.stack([x for x, _ in seen]), np.array([sigma[0] for _, sigma in seen])


def yield_trace(
  run: str,
  sampler: Sampler,
  denoiser: Denoiser,
  draws: jax.Array,
  finish: Callable = lambda x: x,
  dtype: str = "float64",
  note: str = "",
) -> Iterator[Result]:
  final, calls, levels = trace(sampler, denoiser, draws)
  yield Result(f"{run}__final", nchw(finish(final)), dtype=dtype, note=note)
  yield Result(f"{run}__call_x", calls.transpose(0, 1, 4, 2, 3), dtype=dtype, note=note)
  yield Result(f"{run}__call_sigma", levels, dtype=dtype, note=note)
  yield Result(f"{run}: as many calls as nfe says", passed=len(levels) == sampler.nfe)


def is_ect(case: Case) -> bool:
  return case.meta.get("cls") == "generator_fn"


def run_ect(case: Case) -> Iterator[Result]:
  with float64():
    draws = jnp.concatenate(
      [images(case.input("latents"))[None], real(case.input("noise")).transpose(0, 1, 3, 4, 2)]
    )
    for run, options in case.meta["runs"].items():
      sampler = Multistep(NoiseRange(), (80.0, *options.get("mid_t", ())), clip=False, renoise="ect")
      yield from yield_trace(run, sampler, mixture(case), draws)


def is_edm(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("edm_sampler")


def run_edm(case: Case) -> Iterator[Result]:
  with float64():
    draws = jnp.concatenate(
      [images(case.input("latents"))[None], real(case.input("noise")).transpose(0, 1, 3, 4, 2)]
    )
    for run, options in case.meta["runs"].items():
      kwargs: dict[str, Any] = dict(options["kwargs"])
      span = {name: kwargs.pop(name) for name in ("sigma_min", "sigma_max", "rho") if name in kwargs}
      if options["net_attrs"]:
        raise ValueError(f"attributes of the network of {run} not known here")
      sampler = (Heun if options["fn"] == "edm_sampler" else Ablation)(NoiseRange(**span), **kwargs)
      rough = kwargs.get("discretization") == "iddpm"
      note = "the peer takes the sines of its levels u_j in float32" if rough else ""
      yield from yield_trace(
        run, sampler, mixture(case), draws, dtype="float32" if rough else "float64", note=note
      )
      # The peer draws at every step, needed or not: draw i + 1 is step i's here too.
      yield Result(f"{run}__num_noise_draws", kwargs["num_steps"], exact=True)


def is_openai(case: Case) -> bool:
  return case.meta.get("cls") == "karras_sample"


def run_openai(case: Case) -> Iterator[Result]:
  """With the clipping of D that is OpenAI's default, and of the result, which is not optional there."""
  with float64():
    draws, noise = real(case.input("noise")).transpose(0, 1, 3, 4, 2), NoiseRange()
    denoiser = mixture(case)
    clipped = lambda x, sigma: jnp.clip(denoiser(x, sigma), -1, 1)
    for run, options in case.meta["runs"].items():
      steps, clip, ts = options["steps"], options.get("clip_denoised", True), options.get("ts", (0, 0))
      kind = options["sampler"]
      sampler: Any = {
        "heun": lambda steps=steps, clip=clip: Heun(noise, steps, clip),
        "euler": lambda steps=steps, clip=clip: Euler(noise, steps - 1, clip, denoise=True),
        "dpm": lambda steps=steps, clip=clip: Dpm2(noise, steps, clip),
        "ancestral": lambda steps=steps, clip=clip: Ancestral(noise, steps, clip),
        "progdist": lambda steps=steps, clip=clip: Euler(noise, steps, clip),
        "onestep": lambda: Multistep(noise, (noise.sigma_max,)),
        "multistep": lambda steps=steps, ts=ts: Multistep(
          noise, tuple(float(karras_grid(steps, noise)[i]) for i in ts[:-1])
        ),
      }[kind]()
      consistency = kind in ("onestep", "multistep")
      clip_all = lambda x: jnp.clip(x, -1, 1)
      yield from yield_trace(run, sampler, clipped if consistency else denoiser, draws, clip_all)
      yield from _callbacks(case, run, kind, sampler, denoiser, draws, clip)
      # how many its generator gave; which draw is whose, call_x shows
      yield Result(f"{run}__num_noise_draws", is_input=True)


def _callbacks(
  case: Case, run: str, kind: str, sampler: Any, denoiser: Denoiser, draws: jax.Array, clip: bool
) -> Iterator[Result]:
  """Yield what the peer tells its callback: sigma at each step; at the last, x before it and D there."""
  if f"{run}__cb_sigma" not in case.outputs():
    return
  _, calls, levels = trace(sampler, denoiser, draws)
  per_step = {"heun": 2, "dpm": 2}.get(kind, 1)
  first = np.arange(0, len(levels), per_step)
  yield Result(f"{run}__cb_sigma", levels[first], dtype="float64")
  x = jnp.asarray(calls[first[-1]])
  D = denoiser(x, jnp.full(len(x), levels[first[-1]]))
  yield Result(f"{run}__cb_last_x", nchw(x), dtype="float64")
  yield Result(f"{run}__cb_last_denoised", nchw(jnp.clip(D, -1, 1) if clip else D), dtype="float64")


HANDLERS = [
  Handler(is_ect, run_ect, "samplers"),
  Handler(is_edm, run_edm, "samplers"),
  Handler(is_openai, run_openai, "samplers"),
]
