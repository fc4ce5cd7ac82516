"""ECT's and EDM's samplers on a Gaussian mixture: every network call and the result; what others share."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.grids import karras_between
from cm_jax.diffusion.precond import IDDPM
from cm_jax.sampling.ablation import Ablation
from cm_jax.sampling.multistep import multistep
from cm_jax.sampling.ode import Heun
from cm_jax.types import Array, Denoiser, Domain, Noise, NoiseRange
from tests.golden.losses import images, real
from tests.golden.networks import nchw
from tests.golden.options import UnknownOption, choice, read
from tests.golden.runner import Case, Handler, Result, each

MIXTURE = "x0 ~ sum_k w_k N(mu_k, s_k^2 I)"  # how meta.json describes the denoiser


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
  if not case.meta["denoiser"].startswith(MIXTURE):
    raise UnknownOption(f"denoiser = {case.meta['denoiser']!r} is not known here")
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


@dataclasses.dataclass(frozen=True)
class Levels:
  """Our multistep sampling at the peers' noise levels: in any order, from any first noise, to any last one.

  Args:
    sigmas: Of the network's calls.
    start: Deviation of the first noise, whatever the first level.
    sigma_min, clip, renoise: As in `Multistep`.
    end: The level whose noise the result has; OpenAI's and jcm's samplers go on to it without a call.
  """

  sigmas: tuple[float, ...]
  start: float
  sigma_min: float = 0.002
  clip: bool = True
  renoise: str = "cm"
  end: float | None = None

  @property
  def nfe(self) -> int:
    return len(self.sigmas)

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    if not self.sigmas:
      return self.start * noise(0, shape)
    draw = lambda k, shape: noise(k, shape) * (1 if k else self.start / self.sigmas[0])
    x = multistep(denoiser, draw, shape, self.sigmas, self.sigma_min, self.clip, self.renoise)
    x = jnp.clip(x, -1, 1) if self.clip else x
    return x if self.end is None else x + left_noise(self.end, self.sigma_min) * noise(self.nfe, shape)


def left_noise(end: float, sigma_min: float) -> float:
  """Return the deviation of what the peers add after their last call: nothing at the end of the grid."""
  return math.sqrt(max(end**2 - sigma_min**2, 0.0))


def levels_at(ts: Sequence[float], steps: int, noise: NoiseRange) -> tuple[tuple[float, ...], float]:
  """Return (levels of the calls, level the result is noised to) of the peers' indices into a Karras grid."""
  if not ts or min(ts) < 0 or max(ts) > steps - 1:
    raise UnknownOption(f"ts = {ts} is not inside the grid of {steps} points")
  levels = [float(karras_between(noise.sigma_max, noise.sigma_min, t / (steps - 1), noise.rho)) for t in ts]
  return tuple(levels[:-1]), min(max(levels[-1], noise.sigma_min), noise.sigma_max)


def trace(sampler: Any, denoiser: Denoiser, draws: jax.Array) -> tuple[jax.Array, np.ndarray, np.ndarray]:
  """Return (samples, the x of every network call, its noise level), with draws [K,B,H,W,C] for noise."""
  seen: list[tuple[np.ndarray, np.ndarray]] = []

  def watched(x, sigma):
    jax.debug.callback(
      lambda x, sigma: seen.append((np.asarray(x), np.asarray(sigma))), x, sigma, ordered=True
    )
    return denoiser(x, sigma)

  final = jax.jit(lambda: sampler(watched, lambda k, shape: draws[k], draws.shape[1:]))()
  jax.effects_barrier()
  calls = np.stack([x for x, _ in seen]) if seen else np.zeros((0, *draws.shape[1:]))
  return final, calls, np.array([sigma[0] for _, sigma in seen])


def yield_trace(
  case: Case,
  run: str,
  sampler: Any,
  denoiser: Denoiser,
  draws: jax.Array,
  finish: Callable = lambda x: x,
  dtype: str = "float64",
  note: str = "",
) -> Iterator[Result]:
  final, calls, levels = trace(sampler, denoiser, draws)
  channels_first = calls.transpose(0, 1, 4, 2, 3)
  found = {"final": nchw(finish(final)), "call_x": channels_first, "call_sigma": levels}
  if len(calls):
    found["call_x_last"] = channels_first[-1]
  for name, value in found.items():
    if f"{run}__{name}" in case.outputs():
      yield Result(f"{run}__{name}", value, dtype=dtype, note=note)
  yield Result(f"{run}: as many calls as nfe says", passed=len(levels) == sampler.nfe)


def first_and_further(case: Case) -> jax.Array:
  """Return the draws of ECT's and EDM's cases: the latents, then the noise."""
  further = real(case.input("noise")).transpose(0, 1, 3, 4, 2)
  return jnp.concatenate([images(case.input("latents"))[None], further])


def is_ect(case: Case) -> bool:
  return case.meta.get("cls") == "generator_fn"


def run_ect(case: Case) -> Iterator[Result]:
  def compute(run: str, given: dict) -> Iterator[Result]:
    options = read(given, run, t_max=80.0, mid_t=None)
    levels = (float(options.t_max), *map(float, options.mid_t or ()))
    sampler = Levels(levels, levels[0], clip=False, renoise="ect")
    yield from yield_trace(case, run, sampler, mixture(case), first_and_further(case))

  with float64():
    yield from each(case.meta["runs"], compute)


def is_edm(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("edm_sampler")


def run_edm(case: Case) -> Iterator[Result]:
  def compute(run: str, given: dict) -> Iterator[Result]:
    options = read(given, run, fn=None, kwargs={}, net_attrs={})
    make = choice(options.fn, {"edm_sampler": _edm_sampler, "ablation_sampler": _ablation_sampler}, "fn")
    domain, rounds = _domain(case, options.net_attrs, run)
    sampler, rough = make(options.kwargs, domain, run)
    rough |= rounds
    note = "the peer has its levels u_j in float32" if rough else ""
    dtype = "float32" if rough else "float64"
    yield from yield_trace(case, run, sampler, mixture(case), first_and_further(case), dtype=dtype, note=note)
    # The peer draws at every step, needed or not: draw i + 1 is step i's here too.
    if f"{run}__num_noise_draws" in case.outputs():
      yield Result(f"{run}__num_noise_draws", sampler.num_steps, exact=True)

  with float64():
    yield from each(case.meta["runs"], compute)


def _edm_sampler(given: dict, domain: Domain, run: str) -> tuple[Heun, bool]:
  known = read(given, run, num_steps=18, sigma_min=0.002, sigma_max=80, rho=7, **_CHURN)
  low, high = max(known.sigma_min, domain.low), min(known.sigma_max, domain.high)
  noise = NoiseRange(low, high, rho=known.rho)
  return Heun(noise, known.num_steps, **_churn(known), domain=domain), False


def _ablation_sampler(given: dict, domain: Domain, run: str) -> tuple[Ablation, bool]:
  own = {"solver": "heun", "discretization": "edm", "schedule": "linear", "scaling": "none", "alpha": 1}
  own |= {"epsilon_s": 1e-3, "C_1": 0.001, "C_2": 0.008, "M": 1000, "sigma_min": None, "sigma_max": None}
  known = read(given, run, num_steps=18, rho=7, **own, **_CHURN)
  fields = {name: vars(known)[name] for name in own}
  sampler = Ablation(NoiseRange(rho=known.rho), known.num_steps, **fields, **_churn(known), domain=domain)
  return sampler, known.discretization == "iddpm"


_CHURN = {"S_churn": 0, "S_min": 0, "S_max": math.inf, "S_noise": 1}


def _churn(known: Any) -> dict[str, float]:
  top = vars(known)["S_max"]
  return {name: vars(known)[name] for name in _CHURN} | {"S_max": None if top is None else float(top)}


def _domain(case: Case, given: dict, run: str) -> tuple[Domain, bool]:
  """Return what the network accepts, and whether it rounds to levels that the peer has in float32.

  `round_sigma`: null or "identity"; "iddpm", or a dict of its C_1, C_2, M; a list of levels; or the name of
  an input that holds them.
  """
  net = read(given, f"{run}: net_attrs", sigma_min=0.0, sigma_max=math.inf, round_sigma=None)
  low, high, rounding = float(net.sigma_min or 0.0), float(net.sigma_max or math.inf), net.round_sigma
  if rounding in (None, "identity"):
    return Domain(low, high), False
  if isinstance(rounding, str) and case.input(rounding.removeprefix("in_")) is not None:
    rounding = case.input(rounding.removeprefix("in_")).ravel().tolist()
  if isinstance(rounding, list):
    return Domain(low, high, tuple(map(float, rounding))), True
  if isinstance(rounding, dict) or str(rounding).lower() in ("iddpm", "iddpmprecond"):
    own = read(rounding if isinstance(rounding, dict) else {}, "round_sigma", C_1=0.001, C_2=0.008, M=1000)
    known = IDDPM(NoiseRange(), **vars(own)).domain
    return Domain(low, high, known.levels), True
  raise UnknownOption(f"{run}: net_attrs round_sigma = {rounding!r} is not known here")


HANDLERS = [
  Handler(is_ect, run_ect, "samplers", ("runs", "denoiser")),
  Handler(is_edm, run_edm, "samplers", ("runs", "denoiser", "net")),
]
