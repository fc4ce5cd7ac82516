"""Invariant 3 for the objectives: on Gaussian data every expectation is a quadrature and every minimiser is
known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import L2
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import KarrasPairs
from cm_jax.diffusion.precond import Boundary
from cm_jax.diffusion.solvers import SOLVERS, euler, heun
from cm_jax.diffusion.weights import uniform
from cm_jax.objectives.consistency import Consistency, ConsistencyDraws
from cm_jax.objectives.denoising import Denoising, DenoisingDraws
from cm_jax.types import Context, NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian, GaussianPreconditioned, quadrature

NOISE = NoiseRange(sigma_min=0.05, sigma_max=5.0)
DATA = Gaussian(mean=0.2, std=0.5)
TRUTH = {"net": {"mean": 0.2, "std": 0.5}}
OFF = {"net": {"mean": 0.3, "std": 0.6}}


def consistency(drift: str, solver=heun) -> Consistency:
  return Consistency(NOISE, KarrasPairs(NOISE, constant(2)), DRIFTS[drift](), solver, L2(), uniform)


def expected(objective: Consistency, student, num_scales: int, nodes: int = 30):
  """Return `loss(params)`, the exact expectation of the objective over data, noise and grid intervals."""
  x, z, interval, weight = quadrature(DATA, NOISE, num_scales, nodes)
  pairs = KarrasPairs(NOISE, constant(num_scales))
  t, r = quick_jit(lambda interval: pairs.at(interval, num_scales))(interval)
  draws = ConsistencyDraws(t, r, z, jax.random.key(0))
  context = Context(student=student, teacher=GaussianPreconditioned(), teacher_params=TRUTH)
  return lambda params: (
    weight @ objective.loss(params, context, {"image": x}, draws, jnp.zeros([], jnp.int32)).per_example
  )


def gradients(objective: Consistency, student, num_scales: int, nodes: int = 30):
  """Return `gradient(params)`, that of the exact expectation, as one vector."""
  grad = quick_jit(jax.grad(expected(objective, student, num_scales, nodes)))
  return lambda params: np.array([float(leaf) for leaf in jax.tree.leaves(grad(params))])


def curved_net(params, x, c_noise, condition=None, key=None):
  """A network that is linear in nothing."""
  p = params
  return p["a"] * jnp.tanh(p["b"] * x + append_dims(p["c"] * c_noise + p["d"], x)) + p["e"] * x**2 / (
    1 + x**2
  )


CURVED = {"net": {"a": 0.7, "b": 1.1, "c": -0.6, "d": 0.2, "e": 0.3}}


def test_quadrature_is_exact_enough(x64):
  student = Preconditioned(curved_net, Boundary(NOISE))
  coarse, fine = (gradients(consistency("monte_carlo"), student, 9, nodes)(CURVED) for nodes in (30, 50))
  assert np.abs(coarse - fine).max() < 1e-4 * np.abs(fine).max()


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", pytest.param("heun", marks=pytest.mark.slow)])
def test_the_gradient_of_ct_tends_to_that_of_cd_as_1_over_n(x64, solver):
  """CM theorem 2, on gradients: |g_CT - g_CD| / |g_CD| halves when N doubles, for any teacher solver."""
  student = Preconditioned(curved_net, Boundary(NOISE))

  def difference(num_scales: int) -> float:
    ct = gradients(consistency("monte_carlo"), student, num_scales)(CURVED)
    cd = gradients(consistency("teacher", SOLVERS[solver]), student, num_scales)(CURVED)
    return float(np.linalg.norm(ct - cd) / np.linalg.norm(cd))

  differences = [difference(n + 1) for n in (16, 32, 64)]
  rates = np.log2(np.array(differences[:-1]) / differences[1:])
  print(
    f"CT against CD with {solver}, N - 1 = 16, 32, 64: relative differences of the gradients",
    differences,
    "rates",
    rates,
  )
  assert differences[-1] < 0.05, differences
  assert ((rates > 0.8) & (rates < 1.2)).all(), (differences, rates)


def test_for_a_linear_consistency_function_ct_is_cd_with_euler(x64):
  """Then f(x_r) is linear in x_r, and E[x + r z | x_t] is the teacher's Euler step: the gradients agree at
  every N."""
  student = GaussianPreconditioned(NOISE.sigma_min)
  ct = gradients(consistency("monte_carlo"), student, 5)(OFF)
  cd = gradients(consistency("teacher", euler), student, 5)(OFF)
  np.testing.assert_allclose(ct, cd, rtol=1e-10)
  assert np.abs(gradients(consistency("teacher", heun), student, 5)(OFF) / cd - 1).max() > 0.01


def test_distillation_along_the_exact_path_is_zero_at_the_consistency_function(x64):
  """With an exact solver the consistency function is the minimiser at any N: loss and gradient are 0 there,
  and nowhere near."""
  exact = lambda drift, x, t, r: DATA.path(x, t, r)
  loss = quick_jit(
    jax.value_and_grad(expected(consistency("teacher", exact), GaussianPreconditioned(NOISE.sigma_min), 4))
  )
  value, grads = loss(TRUTH)
  assert float(value) < 1e-28
  assert max(abs(float(leaf)) for leaf in jax.tree.leaves(grads)) < 1e-13
  assert float(loss(OFF)[0]) > 1e-4


@pytest.mark.parametrize(
  ("drift", "solver", "order"), [("teacher", "heun", 2), ("teacher", "euler", 1), ("monte_carlo", "euler", 1)]
)
def test_at_the_consistency_function_the_gradient_vanishes_with_the_order_of_the_solver(
  x64, drift, solver, order
):
  """Relative to the gradient a tenth away from it, which keeps its direction towards the truth."""
  student = GaussianPreconditioned(NOISE.sigma_min)

  def ratio(num_scales: int) -> float:
    at, away = map(
      gradients(consistency(drift, SOLVERS[solver]), student, num_scales, nodes=20), (TRUTH, OFF)
    )
    assert (away > 0).all()  # both parameters of OFF are too large
    return float(np.linalg.norm(at) / np.linalg.norm(away))

  ratios = [ratio(n + 1) for n in (32, 64)]
  rate = float(np.log2(ratios[0] / ratios[1]))
  assert ratios[1] < 0.1, ratios
  assert abs(rate - order) < 0.2, (ratios, rate)


def test_the_target_network_is_the_targets_own_params(x64):
  """At theta = truth and theta- = truth nothing moves; with another theta- the student is pulled to it."""
  x, z, interval, weight = quadrature(DATA, NOISE, 4, nodes=20)
  t, r = KarrasPairs(NOISE, constant(4)).at(interval, 4)
  objective = consistency("teacher", lambda drift, x, t, r: DATA.path(x, t, r))

  @quick_jit
  def loss(params, target_params):
    context = Context(GaussianPreconditioned(NOISE.sigma_min), GaussianPreconditioned(), target_params, TRUTH)
    draws = ConsistencyDraws(t, r, z, jax.random.key(0))
    return weight @ objective.loss(params, context, {"image": x}, draws, jnp.zeros([], jnp.int32)).per_example

  assert float(loss(TRUTH, TRUTH)) < 1e-28
  assert float(loss(TRUTH, OFF)) > 1e-4


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_denoising_loss_is_least_at_the_exact_denoiser(x64, reduction):
  x, z, interval, weight = quadrature(DATA, NOISE, 4, nodes=20)
  sigma, _ = KarrasPairs(NOISE, constant(4)).at(interval, 4)
  objective = Denoising(NOISE, reduction=reduction)

  @quick_jit
  @jax.value_and_grad
  def loss(params):
    draws = DenoisingDraws(sigma, z, None, jax.random.key(0))
    return (
      weight
      @ objective.loss(
        params, Context(GaussianPreconditioned()), {"image": x}, draws, jnp.zeros([], jnp.int32)
      ).per_example
    )

  value, grads = loss(TRUTH)
  # What is left is the data's variance given x_t: weight (s sigma)^2/(s^2 + sigma^2) = 1 for s = sigma_data,
  # at every noise level.
  assert dataclasses.asdict(DATA)["std"] == NOISE.sigma_data
  assert float(value) == pytest.approx(1.0, rel=1e-10)
  assert max(abs(float(leaf)) for leaf in jax.tree.leaves(grads)) < 1e-10
  assert float(loss(OFF)[0]) > 1.01
