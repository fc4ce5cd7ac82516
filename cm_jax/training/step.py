"""The train step: a pure function (state, batch, key, teacher_params, distance_params)
-> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cm_jax.diffusion.precision import computing_in
from cm_jax.models import Method
from cm_jax.training.averages.track import read_average
from cm_jax.training.bins import BIN_EDGES, bin_index
from cm_jax.training.packing import NOTHING, Packing
from cm_jax.types import Array, Batch, Context, Metrics, Params, Preconditioned, TrainState

# Folded into key(seed) for the initial params: apart from all steps, which fold in their number.
INIT_KEY = 2**32 - 1
STATES = ("nonfinite_in_a_row", "nonfinite_total")  # metrics that are states, not means over steps
StepFunction = Callable[[TrainState, Batch, Array, Params, Params], tuple[TrainState, Metrics]]


def init_state(
  init: Callable[[Array], Params], optimizer: optax.GradientTransformationExtraArgs, seed: int
) -> TrainState:
  """Return the state before the first step."""
  params = init(jax.random.fold_in(jax.random.key(seed), INIT_KEY))
  return TrainState(step=jnp.zeros([], jnp.int32), params=params, opt_state=optimizer.init(params))


@functools.lru_cache(maxsize=4)
def state_shapes(
  init: Callable[[Array], Params], optimizer: optax.GradientTransformationExtraArgs
) -> TrainState:
  """Return the shapes of the state; of a method they are asked for several times, and traced once."""
  return jax.eval_shape(lambda: init_state(init, optimizer, 0))


def split_microbatches(tree: Any, parts: int, group: int = 1) -> list[Any]:
  """Cut every array of B rows into `parts` strided micro-batches, so that each stays spread over all devices.

  Keys are folded. `group` consecutive rows stay together.

  >>> [piece.tolist() for piece in split_microbatches(jnp.arange(4), 2)]
  [[0, 2], [1, 3]]
  >>> [piece.tolist() for piece in split_microbatches(jnp.arange(8), 2, group=2)]
  [[0, 1, 4, 5], [2, 3, 6, 7]]
  """

  def piece(leaf: Array, i: int) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.fold_in(leaf, i)
    rest = leaf.shape[1:]
    chosen = leaf.reshape(leaf.shape[0] // (parts * group), parts, group, *rest)[:, i]
    return chosen.reshape(-1, *rest)

  return [jax.tree.map(lambda leaf: piece(leaf, i), tree) for i in range(parts)]


def accumulate(function: Callable[[Any], Any], parts: list[Any]) -> Any:
  """Return the mean of function(part) over micro-batches: unrolled on CPU,
  where a scan of convolutions is 20 times slower."""
  if len(parts) == 1:
    return function(parts[0])
  if jax.default_backend() == "cpu":
    results = [function(part) for part in parts]
    return jax.tree.map(lambda *leaves: sum(leaves) / len(parts), *results)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
  zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, parts[0]))
  add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
  total = jax.lax.scan(add, zero, stacked)[0]
  return jax.tree.map(lambda leaf: leaf / len(parts), total)


def make_train_step(
  method: Method, teacher: Preconditioned | None = None, accumulation: int = 1
) -> StepFunction:
  """Return the pure train step; the caller jits it with shardings and donates the state.

  Args:
    method: From `assemble`. All of a batch's randomness is drawn before it is cut into micro-batches, so
      accumulation does not change it.
    teacher: Frozen network of distillation.
    accumulation: Number of micro-batches.

  Returns:
    step(state, batch, key, teacher_params, distance_params) -> (state, metrics). `key` is the run's
    key(seed); metrics are scalars but for "bin_count", "bin_loss" and the like [7],
    sums over the batch per noise-level bin.
  """
  objective, optimizer, needs = method.objective, method.optimizer, method.objective.needs

  def train_step(
    state: TrainState, batch: Batch, key: Array, teacher_params: Params, distance_params: Params
  ) -> tuple[TrainState, Metrics]:
    preprocess_key, draw_key = jax.random.split(jax.random.fold_in(key, state.step))
    ready = method.preprocess(batch, preprocess_key)
    draws = objective.draw(draw_key, ready, state.step)
    target_params = None if needs.target_decay is None else read_average(state.opt_state, "target")
    context = Context(method.student, teacher, target_params, teacher_params, distance_params)

    def value_and_grad(part: tuple[Batch, Any]) -> tuple[Any, Metrics]:
      def loss(params: Params) -> tuple[Array, Metrics]:
        output = objective.loss(params, context, part[0], part[1], state.step)
        one_hot = jax.nn.one_hot(bin_index(output.noise_level), len(BIN_EDGES) + 1)
        binned = {"loss": output.per_example, **output.by_level}
        bins = {f"bin_{name}": values @ one_hot for name, values in binned.items()}
        return output.loss, {"loss": output.loss, **output.metrics, "bin_count": one_hot.sum(axis=0), **bins}

      return jax.grad(loss, has_aux=True)(state.params)

    with computing_in(method.config.matmul_precision):  # of a learned distance too
      grads, metrics = accumulate(
        value_and_grad, split_microbatches((ready, draws), accumulation, needs.group)
      )
    packing = NOTHING
    if method.apart is not None and jax.default_backend() == "cpu":  # measured there only
      packing = Packing(state.params, method.apart(state.params))
    grads, opt_state, params = packing.pack((grads, state.opt_state, state.params))
    updates, opt_state = optimizer.update(grads, opt_state, params, step=state.step, value=metrics["loss"])
    params = optax.apply_updates(params, updates)
    metrics |= {
      "grad_norm": optax.tree.norm(grads),
      "update_norm": optax.tree.norm(updates),
      "nonfinite_in_a_row": optax.tree.get(opt_state, "notfinite_count"),
      "nonfinite_total": optax.tree.get(opt_state, "total_notfinite"),
    }
    params, opt_state = packing.unpack((params, opt_state))
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return train_step
