"""A placed train step: what it is compiled from, and where every array it touches lives."""

from typing import Any

import jax
import jax.numpy as jnp

from cm_jax.models import Experiment, Method
from cm_jax.training import sharding
from cm_jax.training.averages.track import read_average
from cm_jax.training.layout import read_rules
from cm_jax.training.step import StepFunction, init_state, make_train_step, state_shapes
from cm_jax.types import Params, Preconditioned, TrainState

FROZEN = ("teacher", "distance")  # what the step is given beside the state, in its order


def place_step(
  method: Method,
  teacher: Preconditioned | None,
  mesh: jax.sharding.Mesh,
  shapes: TrainState,
  frozen: tuple[Params, Params],
) -> tuple[StepFunction, TrainState]:
  """Return the jitted train step on a mesh, sharded state in and out, donated; and where its state lives.

  Args:
    method: From `assemble`.
    teacher: Frozen network of distillation.
    mesh: The devices.
    shapes: Of the TrainState.
    frozen: (teacher_params, distance_params), or their shapes; None where there are none.
  """
  rules = read_rules(method.config.mesh.rules)
  shardings = sharding.tree_shardings(shapes, mesh, rules, "state")
  placed = [
    None if params is None else sharding.tree_shardings(params, mesh, rules, kind)
    for params, kind in zip(frozen, FROZEN, strict=True)
  ]
  replicated = sharding.replicated(mesh)
  step = jax.jit(
    make_train_step(method, teacher, method.config.accumulation),
    in_shardings=(shardings, sharding.batch_sharding(mesh), replicated, *placed),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )
  return step, shardings


class Program:
  """The train step of an experiment on its devices; nothing is computed or allocated before it is asked for.

  Args:
    experiment: From `build`.

  Attributes:
    shapes: Of the TrainState, abstract.
    shardings: Of its leaves.
    step: The jitted train step: sharded state in and out, donated.
  """

  def __init__(self, experiment: Experiment):
    self._experiment, method = experiment, experiment.method
    self.shapes: TrainState = state_shapes(method.init, method.optimizer)
    teacher = experiment.teacher
    frozen = (None if teacher is None else teacher.params), experiment.distance_params
    self.step: StepFunction
    self.shardings: TrainState
    network = None if teacher is None else teacher.preconditioned
    self.step, self.shardings = place_step(method, network, experiment.mesh, self.shapes, frozen)

  def place(self, params: Any, kind: str = "params") -> Any:
    """Put a tree of arrays on the devices; None stays None.

    Args:
      params: The arrays.
      kind: What they are: "params", or one of `FROZEN`.
    """
    return None if params is None else sharding.put(params, self.shardings_of(params, kind))

  def shardings_of(self, params: Any, kind: str) -> Any:
    """Return where each of a tree of arrays or shapes is to live, as for `place`."""
    experiment = self._experiment
    rules = read_rules(experiment.config.mesh.rules)
    return sharding.tree_shardings(params, experiment.mesh, rules, kind)

  def frozen(self) -> tuple[Any, Any]:
    """Return (teacher_params, distance_params), the frozen arguments of the step, on the devices."""
    teacher = self._experiment.teacher
    params = None if teacher is None else teacher.params
    return self.place(params, "teacher"), self.place(self._experiment.distance_params, "distance")

  def create(self) -> TrainState:
    """Return the state before the first step, made already sharded;
    from `experiment.initial_params` if it has them."""
    method, seed = self._experiment.method, self._experiment.config.seed
    initial = self._experiment.initial_params
    if initial is None:
      return jax.jit(lambda: init_state(method.init, method.optimizer, seed), out_shardings=self.shardings)()
    from_params = lambda params: init_state(lambda _: params, method.optimizer, seed)
    return jax.jit(from_params, out_shardings=self.shardings)(self.place(initial))

  def check(self, batch: Any) -> None:
    """Trace the step for a batch: what does not fit is found here, before anything is written.

    Traced for arrays where they will live, so that the first step finds it done.

    Args:
      batch: The global batch, or its shapes.
    """
    teacher = self._experiment.teacher
    frozen = (None if teacher is None else teacher.params), self._experiment.distance_params
    spread = sharding.batch_sharding(self._experiment.mesh)
    jax.eval_shape(
      self.step,
      sharding.abstract(self.shapes, self.shardings),
      sharding.abstract(batch, jax.tree.map(lambda _: spread, batch)),
      jax.eval_shape(lambda: jax.random.key(0)),
      *(
        None if params is None else sharding.abstract(params, self.shardings_of(params, kind))
        for params, kind in zip(frozen, FROZEN, strict=True)
      ),
    )

  def next_stage(self, state: TrainState) -> tuple[TrainState, Params]:
    """Return the state and the teacher a stage of progressive distillation begins with:
    both the student's first average.

    The optimiser and the averages start afresh (Salimans & Ho 2022, Alg. 2).
    """
    average = read_average(state.opt_state, next(iter(self._experiment.config.averages)))
    optimizer = self._experiment.method.optimizer
    # Copies: the next step donates the state's buffers.
    begin = lambda params: TrainState(state.step, jax.tree.map(jnp.copy, params), optimizer.init(params))
    teacher = {"net": average["net"]}
    copied = jax.jit(
      lambda params: jax.tree.map(jnp.copy, params), out_shardings=self.shardings_of(teacher, "teacher")
    )
    return jax.jit(begin, out_shardings=self.shardings)(average), copied(teacher)
