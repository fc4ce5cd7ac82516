"""ECT's, EDM's and OpenAI's losses and gradients, on toy and real networks; OpenAI's N(k) and mu(k)."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.convert import edm, openai
from cm_jax.convert.foreign import Foreign
from cm_jax.diffusion.curriculum import (
  Curriculum,
  constant,
  halving,
  progressive_scales,
  target_decay,
)
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import PseudoHuber
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import Lognormal, VELevels, VPLevels
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import ContinuousPairs, KarrasPairs
from cm_jax.diffusion.precond import ECT, EDM, PRECONDS, Boundary
from cm_jax.diffusion.solvers import euler, heun
from cm_jax.diffusion.weights import WEIGHTS, inverse_gap, karras, snr
from cm_jax.networks import as_net
from cm_jax.objectives.consistency import Consistency, ConsistencyDraws
from cm_jax.objectives.denoising import Denoising, DenoisingDraws
from cm_jax.objectives.progressive import Progressive, ProgressiveDraws
from cm_jax.training.averages.track import track_averages
from cm_jax.types import Condition, NoiseRange
from tests.golden.losses import (
  KEY,
  PRECISIONS,
  STEP,
  UNUSED_PAIRS,
  distance_of,
  foreign_grads,
  grad_results,
  images,
  is_toy,
  load,
  losses_and_grads,
  mean_weights,
  real,
  toy_net,
  toy_params,
  weight_of,
)  # fmt: skip
from tests.golden.networks import labels, nchw
from tests.golden.options import choice, read
from tests.golden.runner import Case, Handler, Result, each

ECT_NOISE = NoiseRange(sigma_min=0.003)


def is_ect(case: Case) -> bool:
  return case.meta.get("cls") == "ECMLoss"


def run_ect(case: Case) -> Iterator[Result]:
  """ECT's loss: on the toy network, and on a SongUNet whose reference was made in float64."""
  for dtype in PRECISIONS:
    with jax.enable_x64(dtype == "float64"):
      if is_toy(case):
        net, params, foreign, precond = toy_net(), toy_params(case), None, ECT(ECT_NOISE)
      else:
        described = read(case.meta["net"], "net", precond="ECMPrecond", kwargs={}, mode="")
        choice(described.mode, {"train with dropout forced to 0": None}, "net: mode")
        weights = {f"model.{name}": array for name, array in case.weights.items()}
        foreign = edm.describe(described.precond, {**described.kwargs, **_sizes(case)}, weights)
        module, params = load(foreign, dtype, dropout=0.0)
        net, precond = as_net(module), precond_of(foreign)
      yield from _ect_runs(case, Preconditioned(net, precond), params, foreign, dtype)


def precond_of(foreign: Foreign) -> Any:
  """Return a checkpoint's preconditioning."""
  fields = dict(foreign.precond)
  return PRECONDS[fields.pop("name")](NoiseRange(**foreign.noise), **fields)


def _sizes(case: Case) -> dict[str, int]:
  _, channels, size, _ = case.input("images").shape
  return {"img_resolution": size, "img_channels": channels, "label_dim": 0}


def _ect_runs(case: Case, student: Preconditioned, params, foreign, dtype: str) -> Iterator[Result]:
  x, z = images(case.input("images")), images(case.input("eps"))
  normal = real(case.input("rnd_normal").ravel())

  def compute(run: str, given: dict) -> Iterator[Result]:
    options = read(given, run, loss_kwargs={}, stage=None)
    pairs, c = _ect_pairs(options.loss_kwargs, run)
    # without update_schedule the stage is 0, and the ratio that nothing reads is too
    stage = options.stage or 0
    t = Lognormal(pairs.P_mean, pairs.P_std).at(normal)
    r = pairs.target_time(t, stage)
    yield Result(f"{run}__t", t, dtype=dtype)
    yield Result(f"{run}__r", r, dtype=dtype)
    ratio = 0.0 if options.stage is None else 1 - pairs.q ** -(stage + 1.0)
    yield Result(f"{run}__ratio", ratio, note="1 - 1/q^(stage + 1)")
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

  yield from each(case.meta["runs"], compute)
  tables = dict.fromkeys(name for name in case.outputs() if name.startswith("tab_"))
  yield from each(tables, lambda name, _: [Result(name, _ect_table(case, name), dtype=dtype)])
  level = real(np.array([0.003, 0.01, 1.0, 80.0]))
  if foreign is not None:
    # Beside a real network the fixture holds c_skip x: its precond_*_D are those of a network that returns 0.
    nothing = lambda params, x, c_noise, condition, key=None: jnp.zeros_like(x)
    student = Preconditioned(nothing, student.precond)
  for mode, key in (("train", KEY(0)), ("eval", None)):
    if f"precond_{mode}_D" in case.outputs():
      D = jax.jit(lambda x, key=key, student=student: student(params, key=key)(x, level))(3 * x[:4])
      yield Result(f"precond_{mode}_D", nchw(D), dtype=dtype)


def _ect_table(case: Case, name: str) -> jax.Array:
  """Return r(t) of every stage; the first row is before any update of the schedule, which is stage 0."""
  _, adjustment, q = name.split("_")
  pairs, _ = _ect_pairs({"adj": adjustment, "q": float(q[1:])}, name)
  rows = len(case.arrays[case.outputs()[name]]) - 1
  grid = real(case.input("t_grid"))
  return jnp.stack([pairs.target_time(grid, stage) for stage in (0, *range(rows))])


def _ect_pairs(kwargs: dict, run: str) -> tuple[ContinuousPairs, float]:
  """Return the pairs, and c; the peer stores sigma_data and drops cut, neither of which its loss reads."""
  own = {"P_mean": -1.1, "P_std": 2.0, "q": 2.0, "k": 8.0, "b": 1.0}
  given = read(kwargs, run, **own, c=0.0, adj="sigmoid", sigma_data=0.5, cut=4.0)
  adjustment = choice(given.adj, {"sigmoid": "sigmoid", "const": "constant"}, f"{run}: adj")
  fields = {name: float(vars(given)[name]) for name in own}
  return ContinuousPairs(constant(0), adjustment=adjustment, **fields), max(float(given.c), 0.0)


def is_edm(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("EDMLoss")


def run_edm(case: Case) -> Iterator[Result]:
  """EDM's, VP's and VE's losses. The peer's are elementwise, ours their sums over pixels."""
  for dtype in PRECISIONS:
    with jax.enable_x64(dtype == "float64"):
      is_toy(case)
      yield from each(case.meta["runs"], functools.partial(_edm_run, case, dtype))


def _edm_run(case: Case, dtype: str, run: str, given: dict) -> Iterator[Result]:
  options = read(given, run, loss=None, loss_kwargs={}, precond=None, precond_kwargs={}, toy_c_scale=1.0)
  x, z, label = images(case.input("images")), images(case.input("n")), labels(case.input("labels"))
  levels, weight, noise, draw = _edm_loss(options.loss, options.loss_kwargs, run)
  sigma = levels.at(real(case.input(draw).ravel()))
  yield Result(f"{run}__sigma", sigma, dtype=dtype)
  student = Preconditioned(toy_net(options.toy_c_scale), _edm_precond(options, run))
  objective, params = Denoising(noise, levels, weight), toy_params(case)
  batch, draws = {"image": x, "label": label}, DenoisingDraws(sigma, z, None, KEY(0))
  losses, _, grads = losses_and_grads(
    objective, student, None, params, None, None, batch, draws, mean_weights(x)
  )
  # as the loss sees it: in training mode, which a preconditioning may tell from evaluation
  denoise = jax.jit(lambda x_t: student(params, Condition(label), KEY(0))(x_t, sigma))
  D = denoise(x + append_dims(sigma, x) * z)
  elementwise = append_dims(weight(sigma, sigma, noise.sigma_data), x) * (D - x) ** 2
  same = bool(np.allclose(losses, elementwise.sum((1, 2, 3)), rtol=1e-5))
  yield Result(f"{run}: loss is the sum of its elements", passed=same)
  yield Result(f"{run}__loss", nchw(elementwise), dtype=dtype)
  yield from grad_results(case, run, grads, dtype)


def _edm_loss(name: str, given: dict, run: str) -> tuple[Any, Any, NoiseRange, str]:
  """Return (levels, weight, the loss' own noise range, its draw)."""
  kind = choice(name, {"edmloss": "edm", "vploss": "vp", "veloss": "ve"}, f"{run}: loss")
  where = f"{run}: loss_kwargs"
  if kind == "edm":
    own = read(given, where, P_mean=-1.2, P_std=1.2, sigma_data=0.5)
    return Lognormal(own.P_mean, own.P_std), karras, NoiseRange(sigma_data=own.sigma_data), "rnd_normal"
  if kind == "vp":
    own = read(given, where, beta_d=19.9, beta_min=0.1, epsilon_t=1e-5)
    return VPLevels(own.epsilon_t, own.beta_d, own.beta_min), snr, NoiseRange(), "rnd_uniform"
  own = read(given, where, sigma_min=0.02, sigma_max=100)
  return VELevels(own.sigma_min, own.sigma_max), snr, NoiseRange(), "rnd_uniform"


def _edm_precond(options: Any, run: str) -> Any:
  """Return the preconditioning; half precision is for GPUs only, there too."""
  names = {name.lower(): name for name in edm.WRAPPERS}
  wrapper = edm.WRAPPERS[choice(options.precond, names, f"{run}: precond")]
  own = vars(read(options.precond_kwargs, f"{run}: precond_kwargs", **wrapper.own, use_fp16=False))
  fields = {key: own[key] for key in wrapper.keeps}
  # sigma_min is a boundary of ECT's only; the others' bound their samplers
  floor = {"sigma_min": own["sigma_min"]} if wrapper.precond == "ect" else {}
  return PRECONDS[wrapper.precond](NoiseRange(sigma_data=own.get("sigma_data", 0.5), **floor), **fields)


def is_openai(case: Case) -> bool:
  return case.meta.get("cls", "").startswith("KarrasDenoiser.consistency_losses")


def run_openai(case: Case) -> Iterator[Result]:
  """OpenAI's CD, CT, progressive and diffusion losses: means over pixels, the network fed 1000 c_noise."""
  for dtype in PRECISIONS:
    with jax.enable_x64(dtype == "float64"):
      whose = ("model.", "target.", "teacher.")
      if is_toy(case):
        net, foreign = toy_net(1e-3), None
        params = [toy_params(case, prefix) for prefix in whose]
      else:
        foreign = [_openai_checkpoint(case, who) for who in whose]
        loaded = [load(checkpoint, dtype) for checkpoint in foreign]
        net, params = as_net(loaded[0][0]), [tree for _, tree in loaded]
      compute = functools.partial(_openai_run, case, dtype, net, params, foreign)
      yield from each(case.meta["runs"], compute)


def _openai_run(
  case: Case, dtype: str, net: Any, params: list, foreign: Any, run: str, given: dict
) -> Iterator[Result]:
  own = {"weight_schedule": "karras", "loss_norm": "lpips", "distillation": True}
  span = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002, "rho": 7.0}
  common = vars(read(case.meta.get("kd_kwargs"), "kd_kwargs", **span, **own))
  noise = NoiseRange(**{name: common[name] for name in span})
  given = {**{name: common[name] for name in own}, **given}
  options = read(given, run, fn=None, num_scales=None, teacher=True, **own)
  boundary, plain = Boundary(noise, time_scale=1000.0), EDM(noise, time_scale=1000.0)
  student = Preconditioned(net, boundary if options.distillation else plain)
  teacher = Preconditioned(net, plain)
  batch = {"image": images(case.input("x_start"))}
  if case.input("y") is not None:
    batch["label"] = jnp.asarray(case.input("y"), jnp.int32)
  objective, draws = _openai_objective(case, run, options, noise, images(case.input("noise")))
  weights = mean_weights(batch["image"])
  losses, _, grads = losses_and_grads(objective, student, teacher, *params, batch, draws, weights)
  yield Result(f"{run}__loss", losses, dtype=dtype)
  yield from grad_results(case, run, foreign_grads(foreign[0], grads) if foreign else grads, dtype)
  if options.fn == "training_losses":
    unweighted = Denoising(noise, weight=WEIGHTS["uniform"], reduction="mean")
    error = losses_and_grads(unweighted, student, None, params[0], None, None, batch, draws, weights)[0]
    yield Result(f"{run}__xs_mse", error, dtype=dtype, note="unweighted")
    yield Result(f"{run}__mse", losses, dtype=dtype)


def _openai_checkpoint(case: Case, prefix: str) -> Foreign:
  net = read(case.meta["net"], "net", cls="UNetModel", kwargs={}, mode="eval")
  choice(net.cls, {"unetmodel": None}, "net: cls")
  choice(net.mode, {"eval": None}, "net: mode")
  arrays = {
    name.removeprefix(prefix): array for name, array in case.weights.items() if name.startswith(prefix)
  }
  return openai.describe(net.kwargs, arrays, "boundary")


def _openai_objective(case: Case, run: str, options: Any, noise: NoiseRange, z) -> tuple[Any, Any]:
  """Return (objective, draws) of a run."""
  weight = weight_of(options.weight_schedule, run)
  kinds = {name: name for name in ("training_losses", "progdist_losses", "consistency_losses")}
  kind = choice(options.fn, kinds, f"{run}: fn")
  if kind == "training_losses":
    given = case.input(f"{run}__sigmas")
    sigma = Lognormal(-1.2, 1.2).at(z[:, 0, 0, 0]) if given is None else real(given.ravel())
    return Denoising(noise, weight=weight, reduction="mean"), DenoisingDraws(sigma, z, None, KEY(0))
  index, distance = jnp.asarray(case.input(f"{run}__indices")), distance_of(options.loss_norm, run)
  if kind == "progdist_losses":
    objective = Progressive(noise, constant(options.num_scales), distance, weight)
    return objective, ProgressiveDraws(*objective.at(index, options.num_scales), z, KEY(0))
  drift, solver = ("teacher", heun) if options.teacher else ("monte_carlo", euler)
  t, r = KarrasPairs(noise, constant(options.num_scales)).at(index, options.num_scales)
  objective = Consistency(noise, UNUSED_PAIRS, DRIFTS[drift](), solver, distance, weight)
  return objective, ConsistencyDraws(t, r, z, KEY(0))


def is_schedules(case: Case) -> bool:
  return case.meta.get("cls") == "create_ema_and_scales_fn"


def run_schedules(case: Case) -> Iterator[Result]:
  """N(k) exactly, mu(k) in the official code's convention; and one update of an average."""
  yield from each(case.kwargs, functools.partial(_schedule, case))
  yield Result("update_ema_target", is_input=True)
  yield Result("update_ema_source", is_input=True)
  for name in (name for name in case.outputs() if name.startswith("update_ema_result_rate")):
    target, source = (case.arrays[f"out_update_ema_{who}"] for who in ("target", "source"))
    average = track_averages({"target": float(name.removeprefix("update_ema_result_rate"))})
    params = {"p": jnp.asarray(source)}
    state = average.init({"p": jnp.asarray(target)})
    _, state = average.update(jax.tree.map(jnp.zeros_like, params), state, params, step=STEP)
    yield Result(name, state.averages["target"]["p"])


MODES = {  # of the target's average and of the scales: those that the peer has
  "fixed, fixed": None,
  "fixed, progressive": None,
  "adaptive, progressive": None,
  "fixed, progdist": None,
}


def _schedule(case: Case, run: str, given: dict) -> Iterator[Result]:
  names = ("target_ema_mode", "start_ema", "scale_mode", "start_scales", "end_scales", "total_steps")
  options = read(given, run, **dict.fromkeys((*names, "distill_steps_per_iter")))
  choice(f"{options.target_ema_mode}, {options.scale_mode}", MODES, f"{run}: target_ema_mode, scale_mode")
  steps = case.arrays[f"out_{run}__steps"]
  yield Result(f"{run}__steps", is_input=True)
  scales = constant(options.start_scales)
  if options.scale_mode == "progressive":
    scales = progressive_scales(options.start_scales, options.end_scales, options.total_steps)
  elif options.scale_mode == "progdist":
    stage = options.distill_steps_per_iter
    scales = halving(options.start_scales, stage, 2 * stage)
  yield Result(f"{run}__scales", at(scales, steps), exact=True)
  decay = constant(options.start_ema)
  if options.scale_mode == "progdist":
    decay = constant(1.0)  # the target is the teacher, which rests within a stage
  elif options.target_ema_mode == "adaptive":
    decay = target_decay(scales, options.start_scales, options.start_ema, "code")
  yield Result(f"{run}__ema", at(decay, steps), dtype="float64")
  with jax.enable_x64(True):
    traced = jax.jit(jax.vmap(decay))(jnp.asarray(steps))
  yield Result(f"{run}__ema", traced, dtype="float64", note="as the step looks it up")


def at(curriculum: Curriculum, steps: np.ndarray) -> np.ndarray:
  """Return a curriculum's values at steps, in float64 on the host."""
  return np.asarray(curriculum.values)[np.searchsorted(curriculum.starts, steps, side="right") - 1]


HANDLERS = [
  Handler(is_ect, run_ect, "losses", ("runs", "net")),
  Handler(is_edm, run_edm, "losses", ("runs", "net")),
  Handler(is_openai, run_openai, "losses", ("runs", "net", "kd_kwargs")),
  Handler(is_schedules, run_schedules, "losses", ("kwargs",)),
]
