"""jcm's losses on its NCSN++ with their gradients: CD, CT, continuous time, denoising score matching."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import jcm
from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import L2, PseudoHuber
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import KarrasLevels, Lognormal
from cm_jax.diffusion.pairs import KarrasPairs
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.diffusion.solvers import SOLVERS
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.networks import as_net
from cm_jax.objectives.consistency import Consistency, ConsistencyDraws
from cm_jax.objectives.continuous import Continuous, ContinuousDraws
from cm_jax.objectives.denoising import Denoising, DenoisingDraws
from cm_jax.storage.weights import flatten
from cm_jax.types import NoiseRange
from tests.golden.losses import (
  DISTANCES,
  KEY,
  UNUSED_PAIRS,
  WEIGHT_NAMES,
  foreign_grads,
  grad_results,
  load,
  losses_and_grads,
  real,
)
from tests.golden.runner import Case, Handler, Result


def is_losses(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("get_consistency_loss_fn")


def run_losses(case: Case) -> Iterator[Result]:
  """In float64, as the references: Fourier phases, up to 16 * 2 pi * ln t / 4, leave float32 few digits."""
  with jax.enable_x64(True):
    yield from _runs(case)


def _runs(case: Case) -> Iterator[Result]:
  config = case.meta["model_config"]
  foreign = {who: _checkpoint(case, who) for who in ("model", "target", "ref")}
  loaded = {who: load(checkpoint, "float64") for who, checkpoint in foreign.items()}
  net, params = as_net(loaded["model"][0]), [tree for _, tree in loaded.values()]
  noise = NoiseRange(config["t_min"], config["t_max"], config["data_std"], config["rho"])
  student, teacher = (Preconditioned(net, precond(noise)) for precond in (Boundary, EDM))
  x, mask = real(case.input("image")), real(case.input("mask"))
  for run, options in case.meta["runs"].items():
    objective, learner, draws, factor = _objective(case, run, options, noise, student, teacher, x)
    weights = factor * mask / mask.sum()  # jcm averages over the examples that are not masked
    _, loss, grads = losses_and_grads(objective, learner, teacher, *params, {"image": x}, draws, weights)
    yield Result(f"{run}__loss", loss)
    ours = {name.replace(".", "|"): value for name, value in foreign_grads(foreign["model"], grads).items()}
    yield Result(f"{run}__gradnorms", np.array([np.linalg.norm(ours[name].ravel()) for name in sorted(ours)]))
    if any(name.startswith(f"{run}__grad.") for name in case.outputs()):
      yield from grad_results(case, run, ours, "float32")
  names = sorted(name.replace("/", "|").replace(".", "|") for name in flatten(params[0]["net"]))
  yield Result("grad_keys_sorted", np.array([name.replace("|", "/") for name in names]), exact=True)


def _checkpoint(case: Case, who: str):
  prefix = f"{who}/"
  arrays = {
    name.removeprefix(prefix).replace("/", "."): array
    for name, array in case.weights.items()
    if name.startswith(prefix)
  }
  return jcm.describe(case.meta["model_config"], case.input("image").shape[1], arrays, "boundary")


def _objective(case: Case, run: str, options: dict, noise: NoiseRange, student, teacher, x):
  """Return (objective, the student, draws, what jcm's loss is of ours)."""
  z, kw = real(case.input("z")), options.get("kw", {})
  drift = DRIFTS["monte_carlo" if kw.get("dsm_target") else "teacher"]()
  if options["fn"] == "dsm":
    sigma = Lognormal(-1.2, 1.2).at(real(case.input("tnormal")))
    return Denoising(noise), teacher, DenoisingDraws(sigma, z, None, KEY(0)), 1.0
  if options["fn"] == "cont":
    if kw["loss_norm"] != "l2":
      raise ValueError(f"the distance {kw['loss_norm']} of {run} is not known here")
    draws = ContinuousDraws(KarrasLevels(noise).at(real(case.input("u"))), z, KEY(0))
    # Without stop-gradient jcm's "l2" is the norm of v; with it the pseudo-loss is the sum over pixels, of
    # which our mean of squares has twice the mean.
    distance, factor = (L2(), x[0].size / 2) if kw["stopgrad"] else (PseudoHuber(0.0), 1.0)
    return Continuous(noise, drift, distance, kw["stopgrad"]), student, draws, factor
  t, r = KarrasPairs(noise, constant(options["num_scales"])).at(
    jnp.asarray(case.input(f"{run}__indices")), options["num_scales"]
  )
  weight = WEIGHTS[WEIGHT_NAMES[kw["weighting"]]]
  objective = Consistency(
    noise, UNUSED_PAIRS, drift, SOLVERS[kw["solver"]], DISTANCES[kw["loss_norm"]], weight
  )
  return objective, student, ConsistencyDraws(t, r, z, KEY(0)), 1.0


HANDLERS = [Handler(is_losses, run_losses, "losses")]
