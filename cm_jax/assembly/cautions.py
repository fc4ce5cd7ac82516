"""What a run is told in one line each before it begins, although it can be trained."""

from collections.abc import Iterator

import ml_collections

from cm_jax.assembly.components import component_name, construct
from cm_jax.diffusion.precision import rounding
from cm_jax.diffusion.precond import PRECONDS, anchored
from cm_jax.models import Method

SHOWS = 0.5  # of the difference that a loss compares, above sigma = 1: more of it rounding than this is told


def cautions(config: ml_collections.ConfigDict, method: Method, backend: str) -> list[str]:
  """Return lines about a run: its precision, its boundary, its start.

  Args:
    config: Complete.
    method: Of it.
    backend: Where it computes: cpu, gpu or tpu.
  """
  return [*_of_precision(config, method, backend), *_of_boundary(config, method), *_of_start(config, method)]


def _of_precision(config: ml_collections.ConfigDict, method: Method, backend: str) -> Iterator[str]:
  """Say where the finest gap (t - r)/t is below what the precision resolves."""
  gap = method.objective.finest_gap(method.num_steps - 1)
  dtype, precision = config.network.get("dtype", "float32"), config.matmul_precision
  noise = rounding(dtype, precision, backend)
  if gap is None or noise <= SHOWS * gap:
    return
  said = (
    f"config.network.dtype = {dtype}" if dtype == "bfloat16" else f"config.matmul_precision = {precision}"
  )
  right = "float32 with config.matmul_precision = highest" if dtype == "bfloat16" else "highest"
  yield (
    f"{said}: expected {right}: the finest gap (t - r)/t of this run is {gap:.2g}, and above sigma = 1 "
    f"rounding is {noise / gap:.1g} times the difference that the loss compares there"
  )


def _of_boundary(config: ml_collections.ConfigDict, method: Method) -> Iterator[str]:
  """A consistency loss on a grid, or in continuous time, has its anchor in f(x, sigma_min) = x; a diffusion
  model's D(x, sigma_min) is not x."""
  objective, precond = method.objective, method.student.precond
  said = f"config.precond.name = {component_name(config.precond)}"
  if objective.needs.boundary and not anchored(precond, train=True):
    whose = component_name(config.objective)
    reason = f"f(x, sigma_min) = x holds only about, and the objective {whose} rests on it"
    yield f"{said}: expected {_fitting(method, True)}: {reason}"
  if objective.trains == "diffusion" and (anchored(precond, True) or anchored(precond, False)):
    reason = "a diffusion model's D(x, sigma_min) is not x, which this makes it"
    yield f"{said}: expected {_fitting(method, False)}: {reason}"


def _of_start(config: ml_collections.ConfigDict, method: Method) -> Iterator[str]:
  """Say that a method that tunes a diffusion model is given none."""
  if method.objective.needs.start and not config.init.path:
    whose = component_name(config.objective)
    tuned = f"its paper starts {whose} from a diffusion model's weights, this run starts from random ones"
    yield f"--init = , config.init.path = : expected a run or weights folder of one: {tuned}"


def _fitting(method: Method, wanted: bool) -> str:
  made = {name: construct(PRECONDS, name, "config.precond", noise=method.noise) for name in PRECONDS}
  fits = lambda precond: anchored(precond, True) == anchored(precond, False) == wanted
  return " or ".join(name for name, precond in made.items() if fits(precond))
