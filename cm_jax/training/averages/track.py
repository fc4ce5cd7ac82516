"""Averages of the parameters, carried in the optimiser's state:
one optax transformation, last inside the guard."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cm_jax.errors import UserError, one_of
from cm_jax.training.averages.decays import Constant
from cm_jax.types import Array, Decay, Params


class AverageState(NamedTuple):
  """Averages of the parameters by name, and how many updates they have seen."""

  count: Array  # type: ignore[assignment]  # optax's name for it; tuple.count is not missed
  averages: dict[str, Params]


def track_averages(decays: Mapping[str, float | Decay]) -> optax.GradientTransformationExtraArgs:
  """Carry exponential moving averages of the parameters: e <- e + (1 - mu)(p - e) after each update.

  The last transformation of a chain, so that it sees the parameters as they will be. Averages are at least
  float32 and start as a copy of the parameters. Written as a difference, since mu e + (1 - mu)
  p loses the low bits at mu = 0.9999.

  Args:
    decays: mu by name: a float in [0, 1), or one of `DECAYS`, a function of the train step (the extra
      argument `step`; without it, of the count).

  >>> average = track_averages({"ema": 0.75})
  >>> state = average.init({"w": jnp.zeros(1)})
  >>> _, state = average.update({"w": jnp.ones(1)}, state, {"w": jnp.zeros(1)})
  >>> state.averages["ema"]["w"].tolist()
  [0.25]
  """
  chosen = {name: Constant(decay) if isinstance(decay, float) else decay for name, decay in decays.items()}

  def init(params: Params) -> AverageState:
    # A copy: the state is donated, and a buffer may not be donated twice.
    copy = lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True)
    return AverageState(jnp.zeros([], jnp.int32), {name: jax.tree.map(copy, params) for name in chosen})

  def update(
    updates: Params, state: AverageState, params: Params = None, *, step: Array | None = None, **_: Any
  ):
    if params is None:
      raise ValueError(optax.base.NO_PARAMS_MSG)
    new_params = optax.apply_updates(params, updates)

    def move(name: str, average: Params) -> Params:
      gain = chosen[name].gain(state.count if step is None else step)
      return jax.tree.map(lambda e, p: e + gain * (p.astype(e.dtype) - e), average, new_params)

    averages = {name: move(name, average) for name, average in state.averages.items()}
    return updates, AverageState(state.count + 1, averages)

  return optax.GradientTransformationExtraArgs(init, update)


def _is_average_state(node: Any) -> bool:
  return isinstance(node, AverageState)


def read_average(opt_state: Any, name: str) -> Params:
  """Return the average called `name` from an optimiser state.

  Raises:
    UserError: No such average is tracked.
  """
  averages = split_averages(opt_state)[1]
  if name not in averages:
    raise UserError("average", name, one_of(averages, name))
  return averages[name]


def split_averages(opt_state: Any) -> tuple[Any, dict[str, Params]]:
  """Return the optimiser state without its averages, and the averages:
  they are stored as separate checkpoint items."""
  found: dict[str, Params] = {}

  def take(node: Any) -> Any:
    if not _is_average_state(node):
      return node
    found.update(node.averages)
    return AverageState(node.count, {})

  return jax.tree.map(take, opt_state, is_leaf=_is_average_state), found


def join_averages(opt_state: Any, averages: dict[str, Params]) -> Any:
  """Put averages back where `split_averages` took them from."""
  put = lambda node: AverageState(node.count, averages) if _is_average_state(node) else node
  return jax.tree.map(put, opt_state, is_leaf=_is_average_state)
