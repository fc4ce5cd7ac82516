"""jcm's losses on its NCSN++ with their gradients: CD, CT, continuous time, denoising score matching."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import jcm
from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import L1, L2, LInf, PseudoHuber
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import KarrasLevels, Lognormal
from cm_jax.diffusion.pairs import KarrasPairs
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.diffusion.solvers import SOLVERS
from cm_jax.networks import as_net
from cm_jax.objectives.consistency import Consistency, ConsistencyDraws
from cm_jax.objectives.continuous import Continuous, ContinuousDraws
from cm_jax.objectives.denoising import Denoising, DenoisingDraws
from cm_jax.objectives.progressive import Progressive, ProgressiveDraws
from cm_jax.storage.weights import flatten
from cm_jax.types import NoiseRange
from tests.golden.losses import (
  KEY,
  UNUSED_PAIRS,
  distance_of,
  foreign_grads,
  grad_results,
  load,
  losses_and_grads,
  real,
  weight_of,
)
from tests.golden.networks import jcm_config
from tests.golden.options import choice, read
from tests.golden.runner import Case, Handler, Result, each


def is_losses(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("get_consistency_loss_fn")


def run_losses(case: Case) -> Iterator[Result]:
  """In float64, as the references: Fourier phases, up to 16 * 2 pi * ln t / 4, leave float32 few digits."""
  with jax.enable_x64(True):
    yield from _runs(case)


def _runs(case: Case) -> Iterator[Result]:
  foreign = {who: _checkpoint(case, who) for who in ("model", "target", "ref")}
  loaded = {who: load(checkpoint, "float64") for who, checkpoint in foreign.items()}
  net, trees = as_net(loaded["model"][0]), {who: tree for who, (_, tree) in loaded.items()}
  yield from each(case.meta["runs"], functools.partial(_run, case, net, trees, foreign["model"]))
  names = sorted(name.replace("/", "|").replace(".", "|") for name in flatten(trees["model"]["net"]))
  yield Result("grad_keys_sorted", np.array([name.replace("|", "/") for name in names]), exact=True)


def _run(case: Case, net, trees: dict, foreign, run: str, given: dict) -> Iterator[Result]:
  config = case.meta["model_config"]
  noise = NoiseRange(config["t_min"], config["t_max"], config["data_std"], config["rho"])
  student, denoiser = (Preconditioned(net, precond(noise)) for precond in (Boundary, EDM))
  x, mask = real(case.input("image")), real(case.input("mask"))
  made = _objective(case, run, given, noise, x)
  learner = student if made.consistency else denoiser
  weights = made.factor * mask / mask.sum()  # jcm averages over the examples that are not masked
  params = trees["model"], trees["target"], trees["target" if made.own_teacher else "ref"]
  _, loss, grads = losses_and_grads(
    made.objective, learner, denoiser, *params, {"image": x}, made.draws, weights
  )
  yield Result(f"{run}__loss", loss)
  ours = {name.replace(".", "|"): value for name, value in foreign_grads(foreign, grads).items()}
  if f"{run}__gradnorms" in case.outputs():
    yield Result(f"{run}__gradnorms", np.array([np.linalg.norm(ours[name].ravel()) for name in sorted(ours)]))
  if any(name.startswith(f"{run}__grad.") for name in case.outputs()):
    yield from grad_results(case, run, ours, "float32")


def _checkpoint(case: Case, who: str):
  prefix = f"{who}/"
  arrays = {
    name.removeprefix(prefix).replace("/", "."): array
    for name, array in case.weights.items()
    if name.startswith(prefix)
  }
  return jcm.describe(jcm_config(case), case.input("image").shape[1], arrays, "boundary")


class Made(NamedTuple):
  """A run as ours: jcm's loss is `factor` of it; of a consistency model or a denoiser; taught by whom."""

  objective: Any
  draws: Any
  consistency: bool
  factor: float = 1.0
  own_teacher: bool = False


def _objective(case: Case, run: str, given: dict, noise: NoiseRange, x) -> Made:
  """Return a run as ours; what jcm's function is not told has the default it has there."""
  options = read(given, run, fn=None, num_scales=None, full=False, kw={})
  functions = {"cons": _consistency, "pd": _progressive, "cont": _continuous, "dsm": _matching}
  make = choice(options.fn, functions, f"{run}: fn")
  return make(case, run, options.kw, options.num_scales or case.meta["model_config"]["num_scales"], noise, x)


def _drift(dsm_target: bool) -> Any:
  return DRIFTS["monte_carlo" if dsm_target else "teacher"]()


def _consistency(case: Case, run: str, given: dict, num_scales: int, noise: NoiseRange, x) -> Made:
  # stopgrad stops nothing: the target has parameters of its own
  own = {"loss_norm": "l1", "weighting": "uniform", "stopgrad": True, "dsm_target": False, "solver": "heun"}
  kw = read(given, run, **own)
  t, r = KarrasPairs(noise, constant(num_scales)).at(jnp.asarray(case.input(f"{run}__indices")), num_scales)
  solver = choice(kw.solver, SOLVERS, f"{run}: solver")
  distance, weight = distance_of(kw.loss_norm, run), weight_of(kw.weighting, run)
  objective = Consistency(noise, UNUSED_PAIRS, _drift(kw.dsm_target), solver, distance, weight)
  return Made(objective, ConsistencyDraws(t, r, real(case.input("z")), KEY(0)), True)


def _progressive(case: Case, run: str, given: dict, num_scales: int, noise: NoiseRange, x) -> Made:
  kw = read(given, run, loss_norm="l2", weighting="truncated_snr")
  distance, weight = distance_of(kw.loss_norm, run), weight_of(kw.weighting, run)
  objective = Progressive(noise, constant(num_scales), distance, weight)
  levels = objective.at(jnp.asarray(case.input(f"{run}__indices")), num_scales)
  draws = ProgressiveDraws(*levels, real(case.input("z")), KEY(0))
  return Made(objective, draws, False, own_teacher=True)


def _continuous(case: Case, run: str, given: dict, num_scales: int, noise: NoiseRange, x) -> Made:
  kw = read(given, run, loss_norm="l1", stopgrad=False, dsm_target=False)
  draws = ContinuousDraws(KarrasLevels(noise).at(real(case.input("u"))), real(case.input("z")), KEY(0))
  # Without stop-gradient jcm's "l2" is the norm of v; with it the pseudo-loss is the sum over pixels, of
  # which our mean of squares has twice the mean. It has no other distance there.
  if kw.stopgrad:
    distance, factor = choice(kw.loss_norm, {"l2": L2()}, f"{run}: loss_norm with stopgrad"), x[0].size / 2
  else:
    norms = {"l1": L1(), "l2": PseudoHuber(0.0), "linf": LInf()}
    distance, factor = choice(kw.loss_norm, norms, f"{run}: loss_norm"), 1.0
  return Made(Continuous(noise, _drift(kw.dsm_target), distance, bool(kw.stopgrad)), draws, True, factor)


def _matching(case: Case, run: str, given: dict, num_scales: int, noise: NoiseRange, x) -> Made:
  # of Karras' process it reads neither the likelihood weighting nor the smallest time
  kw = read(given, run, likelihood_weighting=False, ssm=False, eps=1e-5)
  choice(kw.ssm, {"false": None}, f"{run}: ssm")
  sigma = Lognormal(-1.2, 1.2).at(real(case.input("tnormal")))
  return Made(Denoising(noise), DenoisingDraws(sigma, real(case.input("z")), None, KEY(0)), False)


HANDLERS = [Handler(is_losses, run_losses, "losses", ("runs", "model_config"))]
