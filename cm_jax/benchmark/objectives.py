"""The cost of every objective's train step relative to plain denoising, on one network in one process."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cm_jax.assembly import assemble
from cm_jax.benchmark.cases import BASE, CASES, Case, Workload, case_of, config_of
from cm_jax.benchmark.records import Column, text
from cm_jax.benchmark.timing import excess, ratio
from cm_jax.evaluation.timing import in_turns
from cm_jax.models import Method
from cm_jax.networks import kernels
from cm_jax.training.step import init_state, make_train_step
from cm_jax.types import Array, Batch

# For programs that are looked at, not run.
QUICK: dict[str, Any] = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
FORWARD = "forward"  # one evaluation of the network: the unit that extra cost is stated in


@dataclasses.dataclass(frozen=True)
class Program:
  """A function, and what makes its arguments; nothing is allocated or compiled yet.

  Attributes:
    function: Its first argument is the state, which it gives back first; the caller donates it.
    arguments: seed -> arguments.
  """

  function: Callable[..., tuple[Any, Any]]
  arguments: Callable[[int], tuple[Any, ...]]

  def lower(self) -> jax.stages.Lowered:
    """Trace for compilation, from shapes alone."""
    return jax.jit(self.function, donate_argnums=0).lower(*jax.eval_shape(lambda: self.arguments(0)))


@dataclasses.dataclass
class Running:
  """A compiled program and its state, which it carries from call to call."""

  compiled: jax.stages.Compiled
  state: Any
  rest: tuple[Any, ...]

  def __call__(self) -> None:
    """Take one step and wait for it."""
    self.state, metrics = self.compiled(self.state, *self.rest)
    jax.block_until_ready((self.state, metrics))


def train_step(case: Case, workload: Workload, batch_size: int) -> Program:
  """Return the whole train step of a case."""
  return step_of(config_of(case, workload, batch_size), workload.image_shape)


def step_of(
  config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int = 0
) -> Program:
  """Return the whole train step of a config, on made-up images.

  A teacher is the same network with EDM's preconditioning and random weights.
  """
  method = assemble(config, image_shape, num_classes)
  base = None
  if method.objective.needs.teacher:
    plain = ml_collections.ConfigDict(config)
    with plain.ignore_type():
      plain.objective, plain.precond = dict(CASES[BASE].objective), {"name": CASES[BASE].precond}
    base = assemble(plain, image_shape, num_classes)
  distance = method.objective.needs.distance
  distance_params = None if distance is None else distance.load()

  def arguments(seed: int) -> tuple[Any, ...]:
    key = jax.random.key(seed)
    teacher_params = None if base is None else base.init(jax.random.fold_in(key, 1))
    state = init_state(method.init, method.optimizer, seed)
    batch = images(image_shape, config.batch_size, seed, num_classes)
    return state, batch, key, teacher_params, distance_params

  return Program(make_train_step(method, None if base is None else base.student), arguments)


def forward(workload: Workload, batch_size: int) -> Program:
  """Return one evaluation of the denoiser for a batch."""
  base = _base(workload, batch_size)

  def evaluate(state: Array, x: Array, params: Any) -> tuple[Array, Array]:
    return state, base.student(params)(x, jnp.exp(state))

  def arguments(seed: int) -> tuple[Any, ...]:
    key = jax.random.key(seed)
    return jnp.zeros(batch_size), jax.random.normal(key, (batch_size, *workload.image_shape)), base.init(key)

  return Program(evaluate, arguments)


def _base(workload: Workload, batch_size: int) -> Method:
  return assemble(config_of(CASES[BASE], workload, batch_size), workload.image_shape, 0)


def images(shape: tuple[int, int, int], batch_size: int, seed: int, num_classes: int = 0) -> Batch:
  """Return a batch of random pixels, with random labels if there are classes."""
  key = jax.random.key(seed)
  pixels = jax.random.randint(key, (batch_size, *shape), 0, 256).astype(jnp.uint8)
  if not num_classes:
    return {"image": pixels}
  return {"image": pixels, "label": jax.random.randint(key, (batch_size,), 0, num_classes)}


def flops(compiled: jax.stages.Compiled | jax.stages.Lowered) -> float | None:
  """Return the floating point operations of a program as XLA counts them; None if the backend does not say.

  Note:
    A loop's body is counted once, whatever the number of iterations.
  """
  counted = compiled.cost_analysis()
  return None if not counted or "flops" not in counted else float(counted["flops"])


def temp_bytes(compiled: jax.stages.Compiled) -> int | None:
  """Return the memory of a program's intermediate values; None where the backend does not say."""
  memory = compiled.memory_analysis()
  return None if memory is None else int(memory.temp_size_in_bytes)


def measure(
  workload: Workload,
  batch_size: int,
  rounds: int,
  seed: int = 0,
  names: Sequence[str] = tuple(CASES),
  progress: Callable[[str], object] = lambda name: None,
) -> list[dict[str, Any]]:
  """Compile the forward pass and the steps of `names`, and time them in turns: a row each, the base first.

  Args:
    workload: The network and its images.
    batch_size: Images a step.
    rounds: Timings of each, of which medians are taken.
    seed: Of weights, images and noise.
    names: As for `case_of`.
    progress: Called with a name after each compilation, and with "" after each timing.

  Returns:
    Rows with name, objective, precond, flops, flops_ratio, ms, time_ratio (both ratios to denoising),
    extra_forwards (time beyond denoising in forward passes), temp_bytes, images_per_second, compile_seconds,
    and `seconds`, those of every round.
  """
  cases = {name: case_of(name) for name in (BASE, *names)}
  programs = {FORWARD: forward(workload, batch_size)}
  programs |= {name: train_step(case, workload, batch_size) for name, case in cases.items()}
  same = dataclasses.replace(workload, network={**workload.network, "kernels": "plain"})

  def counted(name: str, compiled: jax.stages.Compiled) -> float | None:
    # XLA counts the body of a loop once: what CPUs run has loops that the plain forms have not.
    if not kernels.for_cpu():
      return flops(compiled)
    plain = forward(same, batch_size) if name == FORWARD else train_step(cases[name], same, batch_size)
    return flops(plain.lower().compile(QUICK))

  running: dict[str, Running] = {}
  rows: list[dict[str, Any]] = []
  for name, program in programs.items():
    before = time.perf_counter()
    compiled = program.lower().compile()
    took = time.perf_counter() - before
    state, *rest = jax.jit(program.arguments, static_argnums=0)(seed)
    running[name] = Running(compiled, state, tuple(rest))
    row: dict[str, Any] = {"name": name}
    if name in cases:
      row |= {"objective": dict(cases[name].objective), "precond": cases[name].precond}
    row |= {"flops": counted(name, compiled), "temp_bytes": temp_bytes(compiled), "compile_seconds": took}
    rows.append(row)
    progress(name)
  seconds = in_turns(running, rounds, progress=lambda: progress(""))
  base_flops, base = rows[1]["flops"], seconds[BASE]
  for row in rows:
    mine = seconds[row["name"]]
    row["flops_ratio"] = row["flops"] / base_flops if base_flops else None
    row["ms"] = 1e3 * float(np.median(mine))
    row["time_ratio"] = ratio(mine, base)
    row["extra_forwards"] = None if row["name"] == FORWARD else excess(mine, base, seconds[FORWARD])
    row["images_per_second"] = batch_size / float(np.median(mine))
    row["seconds"] = mine
  return rows


COLUMNS: dict[str, Column] = {
  "step": lambda row: row["name"],
  "GFLOP": lambda row: text(row["flops"] and row["flops"] / 1e9, ".2f"),
  "x": lambda row: text(row["flops_ratio"], ".2f"),
  "ms": lambda row: f"{row['ms']:.1f}",
  "x time": lambda row: f"{row['time_ratio']:.2f}",
  "+ forwards": lambda row: text(row["extra_forwards"], ".2f"),
  "temp MiB": lambda row: text(row["temp_bytes"] and row["temp_bytes"] / 2**20, ".0f"),
  "images/s": lambda row: f"{row['images_per_second']:.0f}",
}
