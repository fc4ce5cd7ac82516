"""What a train step computes, by part: the network's evaluations, the backward pass, the rest."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from cm_jax.benchmark.plan.flat import Body, Flat, bodies_of, flatten, is_call, open_jaxpr
from cm_jax.benchmark.plan.flops import count, of_equation
from cm_jax.benchmark.plan.setting import Setting
from cm_jax.diffusion.precision import computing_in
from cm_jax.networks import kernels
from cm_jax.networks.remat import alike_once
from cm_jax.types import Context, Preconditioned

PARTS = ("forward", "jvp", "target", "teacher", "loss", "backward")
_STUDENT, _TEACHER = "the_students_network", "the_teachers_network"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluation of a network within a loss.

  Attributes:
    network: Whose.
    flops: With those of a forward-mode derivative, if it is taken of one.
    plain: Whether none is.
    trained: Whether the gradient reaches it.
  """

  network: str
  flops: int
  plain: bool
  trained: bool


class Traced:
  """The loss of a batch and its gradient, traced; every evaluation of a network is one call there.

  Args:
    setting: The method.
    size: Of the batch.
  """

  def __init__(self, setting: Setting, size: int):
    self._setting, self._size = setting, size
    # A call is traced once for all evaluations that are alike, in the loss and in its gradient.
    self._student = _named(setting.method.student, _STUDENT)
    self._teacher = None if setting.teacher is None else _named(setting.teacher, _TEACHER)
    state, batch, key, *frozen = setting.step_arguments(size)
    self._arguments = (state.params, state.params, batch, key, state.step, *frozen)
    # the kernels are those of a learned distance, which no network's own choice reaches
    with kernels.using("plain"), alike_once():
      self.gradient: Body = jax.make_jaxpr(self._gradient)(*self._arguments)

  @functools.cached_property
  def flat(self) -> Flat:
    """Return the gradient as one list of operations."""
    return flatten(self.gradient)

  def by_part(self) -> dict[str, int]:
    """Return the FLOPs of the gradient by part.

    forward: the evaluations of the network that are differentiated. jvp: what forward-mode derivatives add to
    evaluations. target: evaluations that are not differentiated. teacher: its evaluations. loss: noise,
    preconditioning and distance, LPIPS too. backward: what the gradient takes beyond all these, what remat
    computes again among it. The optimiser is left out: it waits for memory, not for arithmetic.
    """
    with kernels.using("plain"), alike_once():
      loss = jax.make_jaxpr(self._loss)(*self._arguments)
    trained = len(jax.tree.leaves(self._arguments[0]))
    evaluations: list[Evaluation] = []
    _walk(open_jaxpr(loss), [index < trained for index in range(len(loss.jaxpr.invars))], evaluations)
    plain = [one.flops for one in evaluations if one.plain and one.network == _STUDENT]
    alone = plain[0] if plain else self._alone()
    found = dict.fromkeys(PARTS, 0)
    for one in evaluations:
      if one.network == _TEACHER:
        found["teacher"] += one.flops
        continue
      found["forward" if one.trained else "target"] += min(one.flops, alone)
      found["jvp"] += max(one.flops - alone, 0)
    found["loss"] = count(loss) - sum(found.values())
    found["backward"] = self.flops() - sum(found.values())
    return found

  def flops(self) -> int:
    """Return the FLOPs of the gradient."""
    return sum(of_equation(operation.equation) for operation in self.flat.operations)

  def _gradient(self, params, *rest):
    loss, pull = jax.vjp(lambda params: self._loss(params, *rest), params)
    return pull(the_backward_pass(loss))[0]

  def _loss(self, params, average, batch, key, step, teacher_params, distance_params):
    method = self._setting.method
    target_params = None if method.objective.needs.target_decay is None else average
    context = Context(self._student, self._teacher, target_params, teacher_params, distance_params)
    ready = method.preprocess(batch, key)
    with computing_in(method.config.matmul_precision):
      return method.objective(params, context, ready, key, step).loss

  def _alone(self) -> int:
    """Return the FLOPs of one evaluation of the student's network, where the loss has none without a
    derivative."""
    x = jax.ShapeDtypeStruct((self._size, *self._setting.method.image_shape), "float32")
    sigma = jax.ShapeDtypeStruct((self._size,), "float32")
    key = jax.eval_shape(lambda: jax.random.key(0))
    evaluate = lambda params, x, sigma, key: self._student(params, key=key)(x, sigma)
    traced = open_jaxpr(jax.make_jaxpr(evaluate)(self._arguments[0], x, sigma, key))
    evaluations: list[Evaluation] = []
    _walk(traced, [False] * len(traced.invars), evaluations)
    return evaluations[0].flops


@jax.jit
def the_backward_pass(loss):
  """Return what it begins with; the name is `flat.BACKWARD`."""
  return jnp.ones_like(loss)


def _named(network: Any, name: str) -> Preconditioned:
  """Return a network whose evaluations are one call each in a trace."""

  def net(params, x, c_noise, condition, *, key=None):
    return network.net(params, x, c_noise, condition, key=key)

  net.__name__ = name
  return dataclasses.replace(network, net=jax.jit(net))


def _walk(jaxpr: Any, reached: Sequence[bool], evaluations: list[Evaluation]) -> list[bool]:
  """Note every evaluation of a network.

  Args:
    jaxpr: The program.
    reached: Of its arguments, whether the gradient reaches them.
    evaluations: Is appended to.

  Returns:
    Whether the gradient reaches its results.
  """
  known = dict(zip(jaxpr.invars, reached, strict=True))
  is_reached = lambda variable: not isinstance(variable, Literal) and known.get(variable, False)
  for equation in jaxpr.eqns:
    given = [is_reached(variable) for variable in equation.invars]
    made = [any(given) and equation.primitive.name != "stop_gradient"] * len(equation.outvars)
    name = equation.params.get("name")
    if name in (_STUDENT, _TEACHER):
      flops = count(bodies_of(equation)[0])
      evaluations.append(Evaluation(name, flops, len(equation.outvars) == 1, any(given)))
    elif is_call(equation):
      body = open_jaxpr(bodies_of(equation)[0])
      made = _walk(body, given[len(given) - len(body.invars) :], evaluations)
    else:
      for body in map(open_jaxpr, bodies_of(equation)):
        _walk(body, [any(given)] * len(body.invars), evaluations)
    known.update(zip(equation.outvars, made, strict=True))
  return [is_reached(variable) for variable in jaxpr.outvars]
