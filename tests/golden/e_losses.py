"""ECT's, EDM's and OpenAI's losses and gradients, on toy and real networks; OpenAI's N(k) and mu(k)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import edm, openai
from cm_jax.diffusion.curriculum import (
  Curriculum,
  constant,
  halving,
  progressive_scales,
  stages,
  target_decay,
)
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import PseudoHuber
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import Lognormal, VELevels, VPLevels
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import ContinuousPairs, KarrasPairs
from cm_jax.diffusion.precond import ECT, EDM, VE, VP, Boundary
from cm_jax.diffusion.solvers import euler, heun
from cm_jax.diffusion.weights import WEIGHTS, inverse_gap, karras, snr
from cm_jax.networks import as_net
from cm_jax.objectives.consistency import Consistency, ConsistencyDraws
from cm_jax.objectives.denoising import Denoising, DenoisingDraws
from cm_jax.objectives.progressive import Progressive, ProgressiveDraws
from cm_jax.training.averages.track import track_averages
from cm_jax.types import Condition, NoiseRange
from tests.golden.losses import (
  DISTANCES,
  KEY,
  PRECISIONS,
  STEP,
  UNUSED_PAIRS,
  WEIGHT_NAMES,
  foreign_grads,
  grad_results,
  images,
  load,
  losses_and_grads,
  mean_weights,
  real,
  toy_net,
  toy_params,
)  # fmt: skip
from tests.golden.networks import labels, nchw
from tests.golden.runner import Case, Handler, Result

ECT_NOISE = NoiseRange(sigma_min=0.003)


def is_ect(case: Case) -> bool:
  return case.meta.get("cls") == "ECMLoss"


def run_ect(case: Case) -> Iterator[Result]:
  """ECT's loss: on the toy network, and on a SongUNet whose reference was made in float64."""
  is_toy = isinstance(case.meta["net"], str)
  for dtype in PRECISIONS:
    with jax.enable_x64(dtype == "float64"):
      if is_toy:
        net, params, foreign = toy_net(), toy_params(case), None
      else:
        weights = {f"model.{name}": array for name, array in case.weights.items()}
        foreign = edm.describe(
          case.meta["net"]["precond"], {**case.meta["net"]["kwargs"], **_sizes(case)}, weights
        )
        module, params = load(foreign, dtype, dropout=0.0)
        net = as_net(module)
      yield from _ect_runs(case, net, params, foreign, dtype)


def _sizes(case: Case) -> dict[str, int]:
  _, channels, size, _ = case.input("images").shape
  return {"img_resolution": size, "img_channels": channels, "label_dim": 0}


def _ect_runs(case: Case, net, params, foreign, dtype: str) -> Iterator[Result]:
  x, z, normal = (
    images(case.input("images")),
    images(case.input("eps")),
    real(case.input("rnd_normal").ravel()),
  )
  student = Preconditioned(net, ECT(ECT_NOISE))
  for run, options in case.meta["runs"].items():
    pairs, c = _ect_pairs(options["loss_kwargs"], options["stage"])
    t = Lognormal(pairs.P_mean, pairs.P_std).at(normal)
    r = pairs.target_time(t, options["stage"])
    yield Result(f"{run}__t", t, dtype=dtype)
    yield Result(f"{run}__r", r, dtype=dtype)
    yield Result(f"{run}__ratio", 1 - pairs.q ** -(options["stage"] + 1.0), note="1 - 1/q^(stage + 1)")
    yield Result(
      f"{run}__num_net_calls", 1 + int((r > 0).any()), exact=True, note="evaluations whose value is used"
    )
    objective = Consistency(
      NoiseRange(), UNUSED_PAIRS, DRIFTS["monte_carlo"](), euler, PseudoHuber(c), inverse_gap
    )
    draws = ConsistencyDraws(t, r, z, KEY(0))
    losses, _, grads = losses_and_grads(
      objective, student, None, params, None, None, {"image": x}, draws, mean_weights(x)
    )
    yield Result(f"{run}__loss", losses, dtype=dtype)
    yield from grad_results(case, run, grads if foreign is None else foreign_grads(foreign, grads), dtype)
  grid = real(case.input("t_grid"))
  for name in (name for name in case.outputs() if name.startswith("tab_")):
    _, adjustment, q = name.split("_")
    pairs, _ = _ect_pairs({"adj": adjustment, "q": float(q[1:])}, 0)
    rows = len(case.arrays[case.outputs()[name]]) - 1
    # Its first row is before any update of the schedule, which is stage 0.
    yield Result(
      name, jnp.stack([pairs.target_time(grid, stage) for stage in (0, *range(rows))]), dtype=dtype
    )
  level = real(np.array([0.003, 0.01, 1.0, 80.0]))
  if foreign is not None:
    # Beside a real network the fixture holds c_skip x: its precond_*_D are those of a network that returns 0.
    nothing = lambda params, x, c_noise, condition, key=None: jnp.zeros_like(x)
    student = Preconditioned(nothing, ECT(ECT_NOISE))
  for mode, key in (("train", KEY(0)), ("eval", None)):
    D = jax.jit(lambda x, key=key, student=student: student(params, key=key)(x, level))(3 * x[:4])
    yield Result(f"precond_{mode}_D", nchw(D), dtype=dtype)


def _ect_pairs(kwargs: dict, stage: int) -> tuple[ContinuousPairs, float]:
  given = {"P_mean": -1.1, "P_std": 2.0, "q": 2.0, "c": 0.0, "k": 8.0, "b": 1.0, "adj": "sigmoid", **kwargs}
  if set(given) != {"P_mean", "P_std", "q", "c", "k", "b", "adj"}:
    raise ValueError(f"options of ECMLoss not known here: {sorted(given)}")
  adjustment = {"sigmoid": "sigmoid", "const": "constant"}[given["adj"]]
  fields = {name: given[name] for name in ("P_mean", "P_std", "q", "k", "b")}
  return ContinuousPairs(stages(1, stage + 1), adjustment=adjustment, **fields), given["c"]


def is_edm(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("EDMLoss")


def run_edm(case: Case) -> Iterator[Result]:
  """EDM's, VP's and VE's losses. The peer's are elementwise, ours their sums over pixels."""
  kinds = {
    "EDMLoss": (Lognormal(), karras, EDM, "rnd_normal"),
    "VPLoss": (VPLevels(), snr, VP, "rnd_uniform"),
    "VELoss": (VELevels(), snr, VE, "rnd_uniform"),
  }
  for dtype in PRECISIONS:
    with jax.enable_x64(dtype == "float64"):
      x, z, label = images(case.input("images")), images(case.input("n")), labels(case.input("labels"))
      params, noise = toy_params(case), NoiseRange()
      for run, options in case.meta["runs"].items():
        if options["loss_kwargs"] or options["precond_kwargs"]:
          raise ValueError(f"options of {run} not known here")
        levels, weight, precond, draw = kinds[options["loss"]]
        sigma = levels.at(real(case.input(draw).ravel()))
        yield Result(f"{run}__sigma", sigma, dtype=dtype)
        student = Preconditioned(toy_net(options["toy_c_scale"]), precond(noise))
        objective = Denoising(noise, levels, weight)
        batch, draws = {"image": x, "label": label}, DenoisingDraws(sigma, z, None, KEY(0))
        losses, _, grads = losses_and_grads(
          objective, student, None, params, None, None, batch, draws, mean_weights(x)
        )
        denoise = jax.jit(
          lambda x_t, student=student, sigma=sigma: student(params, Condition(label))(x_t, sigma)
        )
        D = denoise(x + append_dims(sigma, x) * z)
        elementwise = append_dims(weight(sigma, sigma, noise.sigma_data), x) * (D - x) ** 2
        same = bool(np.allclose(losses, elementwise.sum((1, 2, 3)), rtol=1e-5))
        yield Result(f"{run}: loss is the sum of its elements", passed=same)
        yield Result(f"{run}__loss", nchw(elementwise), dtype=dtype)
        yield from grad_results(case, run, grads, dtype)


def is_openai(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("KarrasDenoiser.consistency_losses")


def run_openai(case: Case) -> Iterator[Result]:
  """OpenAI's CD, CT, progressive and diffusion losses: means over pixels, the network fed 1000 c_noise."""
  is_toy, noise = isinstance(case.meta["net"], str), NoiseRange(**case.meta["kd_kwargs"])
  for dtype in PRECISIONS:
    with jax.enable_x64(dtype == "float64"):
      if is_toy:
        net, foreign, prefixes = toy_net(1e-3), None, ("model.", "target.", "teacher.")
        params = [toy_params(case, prefix) for prefix in prefixes]
      else:
        foreign = [_openai_checkpoint(case, who) for who in ("model.", "target.", "teacher.")]
        loaded = [load(checkpoint, dtype) for checkpoint in foreign]
        net, params = as_net(loaded[0][0]), [tree for _, tree in loaded]
      preconds = Boundary(noise, time_scale=1000.0), EDM(noise, time_scale=1000.0)
      student, teacher = (Preconditioned(net, precond) for precond in preconds)
      batch = {"image": images(case.input("x_start"))}
      if case.input("y") is not None:
        batch["label"] = jnp.asarray(case.input("y"), jnp.int32)
      z = images(case.input("noise"))
      for run, options in case.meta["runs"].items():
        objective, learner, draws = _openai_run(case, run, options, noise, z, student, teacher)
        weights = mean_weights(batch["image"])
        losses, _, grads = losses_and_grads(objective, learner, teacher, *params, batch, draws, weights)
        yield Result(f"{run}__loss", losses, dtype=dtype)
        yield from grad_results(case, run, foreign_grads(foreign[0], grads) if foreign else grads, dtype)
        if options["fn"] == "training_losses":
          plain = [
            Denoising(noise, weight=weight, reduction="mean")
            for weight in (WEIGHTS["uniform"], WEIGHTS["karras"])
          ]
          errors = [
            losses_and_grads(each, learner, None, params[0], None, None, batch, draws, weights)[0]
            for each in plain
          ]
          yield Result(f"{run}__xs_mse", errors[0], dtype=dtype, note="unweighted")
          yield Result(f"{run}__mse", errors[1], dtype=dtype)


def _openai_checkpoint(case: Case, prefix: str):
  arrays = {
    name.removeprefix(prefix): array for name, array in case.weights.items() if name.startswith(prefix)
  }
  return openai.describe(case.meta["net"]["kwargs"], arrays, "boundary")


def _openai_run(case: Case, run: str, options: dict, noise: NoiseRange, z, student, teacher):
  """Return (objective, the student, draws) of a run."""
  distance, weight = DISTANCES[options["loss_norm"]], WEIGHTS[WEIGHT_NAMES[options["weight_schedule"]]]
  if options["fn"] == "training_losses":
    if f"in_{run}__sigmas" in case.arrays:
      raise ValueError(f"{run} draws its noise levels in a way not known here")
    sigma = Lognormal(-1.2, 1.2).at(z[:, 0, 0, 0])
    return Denoising(noise, weight=weight, reduction="mean"), teacher, DenoisingDraws(sigma, z, None, KEY(0))
  index = jnp.asarray(case.input(f"{run}__indices"))
  if options["fn"] == "progdist_losses":
    objective = Progressive(noise, constant(options["num_scales"]), distance, weight)
    return objective, teacher, ProgressiveDraws(*objective.at(index, options["num_scales"]), z, KEY(0))
  drift, solver = ("teacher", heun) if options.get("teacher", True) else ("monte_carlo", euler)
  t, r = KarrasPairs(noise, constant(options["num_scales"])).at(index, options["num_scales"])
  objective = Consistency(noise, UNUSED_PAIRS, DRIFTS[drift](), solver, distance, weight)
  return objective, student, ConsistencyDraws(t, r, z, KEY(0))


def is_schedules(case: Case) -> bool:
  return case.meta.get("cls") == "create_ema_and_scales_fn"


def run_schedules(case: Case) -> Iterator[Result]:
  """N(k) exactly, mu(k) in the official code's convention; and one update of an average."""
  for run, options in case.kwargs.items():
    steps = case.arrays[f"out_{run}__steps"]
    yield Result(f"{run}__steps", is_input=True)
    total, scales = options["total_steps"], constant(options["start_scales"])
    if options["scale_mode"] == "progressive":
      scales = progressive_scales(options["start_scales"], options["end_scales"], total)
    elif options["scale_mode"] == "progdist":
      scales = halving(
        options["start_scales"], options["distill_steps_per_iter"], 2 * options["distill_steps_per_iter"]
      )
    yield Result(f"{run}__scales", at(scales, steps), exact=True)
    decay = constant(options["start_ema"])
    if options["scale_mode"] == "progdist":
      decay = constant(1.0)  # the target is the teacher, which rests within a stage
    elif options["target_ema_mode"] == "adaptive":
      decay = target_decay(scales, options["start_scales"], options["start_ema"], "code")
    yield Result(f"{run}__ema", at(decay, steps), dtype="float64")
    with jax.enable_x64(True):
      traced = jax.jit(jax.vmap(decay))(jnp.asarray(steps))
    yield Result(f"{run}__ema", traced, dtype="float64", note="as the step looks it up")
  target, source = (case.arrays[f"out_update_ema_{who}"] for who in ("target", "source"))
  yield Result("update_ema_target", is_input=True)
  yield Result("update_ema_source", is_input=True)
  average = track_averages({"target": 0.95})
  params = {"p": jnp.asarray(source)}
  state = average.init({"p": jnp.asarray(target)})
  _, state = average.update(jax.tree.map(jnp.zeros_like, params), state, params, step=STEP)
  yield Result("update_ema_result_rate0.95", state.averages["target"]["p"])


def at(curriculum: Curriculum, steps: np.ndarray) -> np.ndarray:
  """Return a curriculum's values at steps, in float64 on the host."""
  return np.asarray(curriculum.values)[np.searchsorted(curriculum.starts, steps, side="right") - 1]


HANDLERS = [
  Handler(is_ect, run_ect, "losses"),
  Handler(is_edm, run_edm, "losses"),
  Handler(is_openai, run_openai, "losses"),
  Handler(is_schedules, run_schedules, "losses"),
]
