"""Continuous-time consistency on Gaussian data: the exact consistency function, teacher and expectations are
known (CM appendix B)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import L1, L2, PseudoHuber
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import KarrasPairs
from cm_jax.diffusion.precond import Boundary
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.objectives.continuous import Continuous, ContinuousDraws
from cm_jax.types import Context, NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian, GaussianPreconditioned, quadrature

NOISE = NoiseRange(sigma_min=0.05, sigma_max=5.0)
DATA = Gaussian(mean=0.2, std=0.5)
TRUTH = {"net": {"mean": 0.2, "std": 0.5}}
OFF = {"net": {"mean": 0.3, "std": 0.6}}
STEP = np.int32(0)
DISTANCES = {"l1": L1(), "norm": PseudoHuber(0.0), "l2": L2(), "huber": PseudoHuber(0.3)}


def curved_net(params, x, c_noise, condition=None, key=None):
  """Linear in nothing; two pixels that see each other."""
  p = params
  mixed = x + p["e"] * x[:, ::-1]
  return p["a"] * jnp.tanh(p["b"] * mixed + append_dims(p["c"] * c_noise + p["d"], x))


CURVED = {"net": {"a": 0.7, "b": 1.1, "c": -0.6, "d": 0.2, "e": 0.3}}


def exactly(objective: Continuous, student, nodes: int = 30):
  """Return the expectation over data, noise and six noise levels, as a function of the params."""
  x, z, interval, weight = quadrature(DATA, NOISE, 7, nodes)
  t, _ = quick_jit(lambda interval: KarrasPairs(NOISE, constant(7)).at(interval, 7))(interval)
  context = Context(student, GaussianPreconditioned(), teacher_params=TRUTH)
  draws = ContinuousDraws(t, z, jax.random.key(0))
  return lambda params: weight @ objective.loss(params, context, {"image": x}, draws, STEP).per_example


def gradient(loss, params) -> np.ndarray:
  return np.array([float(leaf) for leaf in jax.tree.leaves(quick_jit(jax.grad(loss))(params))])


@pytest.mark.slow
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("distance", sorted(DISTANCES))
def test_distillation_is_least_at_the_exact_consistency_function(x64, distance, stop_gradient):
  objective = Continuous(NOISE, DRIFTS["teacher"](), DISTANCES[distance], stop_gradient)
  loss = exactly(objective, GaussianPreconditioned(NOISE.sigma_min))
  if not stop_gradient:  # a pseudo-loss has no meaning as a number
    assert abs(float(loss(TRUTH))) < 1e-12 < 1e-4 < float(loss(OFF))
  # v is 0 up to rounding there, and a norm's gradient at rounding noise is anything: only smooth distances
  # have gradient 0.
  if distance in ("l2", "huber"):
    assert np.abs(gradient(loss, TRUTH)).max() < 1e-12
  assert np.abs(gradient(loss, OFF)).max() > 1e-2


def test_training_has_the_gradient_of_distillation(x64):
  """With stop-gradient and l2 the pseudo-loss is linear in v, and E[v | x_t] is the teacher's: equal
  gradients, not only in the limit."""
  ct, cd = (
    gradient(exactly(Continuous(NOISE, DRIFTS[drift](), L2()), bind_curved(), 40), CURVED)
    for drift in ("monte_carlo", "teacher")
  )
  np.testing.assert_allclose(ct, cd, rtol=0, atol=1e-4 * np.abs(cd).max())  # what the quadrature of x gives
  at_truth = gradient(
    exactly(Continuous(NOISE, DRIFTS["monte_carlo"](), L2()), GaussianPreconditioned(NOISE.sigma_min)), TRUTH
  )
  assert np.abs(at_truth).max() < 1e-12


def bind_curved():
  return Preconditioned(curved_net, Boundary(NOISE))


def images(seed: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=(4, 2, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("distance", sorted(DISTANCES))
@pytest.mark.parametrize("drift", ["teacher", "monte_carlo"])
def test_it_is_the_limit_of_the_discrete_loss(x64, drift, distance, stop_gradient):
  """One small step dt along the drift: d(f, f') / dt^k tends to the loss, its gradient with f' fixed to the
  pseudo-loss' gradient."""
  d, student, t, x, z = (
    DISTANCES[distance],
    bind_curved(),
    jnp.array([0.1, 0.6, 2.0, 4.5]),
    images(0),
    images(1),
  )
  objective = Continuous(NOISE, DRIFTS[drift](), d, stop_gradient)
  context = Context(student, GaussianPreconditioned(), teacher_params=TRUTH)
  loss = lambda params: (
    objective.loss(params, context, {"image": x}, ContinuousDraws(t, z, jax.random.key(0)), STEP).loss
  )
  x_t = x + append_dims(t, x) * z
  slope = DATA.drift(x_t, t) if drift == "teacher" else z
  order = 1 if distance in ("l1", "norm") else 2

  def discrete(params, dt):
    f = student(params)
    target = f(x_t - dt * slope, t - dt)
    # The gradient is of order one lower in dt than the loss where d is smooth.
    return d(f(x_t, t), jax.lax.stop_gradient(target) if stop_gradient else target).mean() / dt ** (
      order - stop_gradient
    )

  got = gradient(loss, CURVED)
  errors = [
    np.linalg.norm(gradient(lambda p, dt=dt: discrete(p, dt), CURVED) - got) / np.linalg.norm(got)
    for dt in (2e-3, 1e-3)
  ]
  # (l1's pull is a sign, which no small enough step changes.)
  assert (
    errors[1] == 0
    if distance == "l1" and stop_gradient
    else errors[1] < 0.05 and 1.5 < errors[0] / errors[1] < 3
  ), errors
  if not stop_gradient:
    assert float(discrete(CURVED, 1e-3)) == pytest.approx(float(loss(CURVED)), rel=0.01)


@pytest.mark.slow
def test_the_tangent_norm_is_that_of_finite_differences(x64):
  student, t, x, z = bind_curved(), jnp.array([0.1, 0.6, 2.0, 4.5]), images(0), images(1)
  objective, context = (
    Continuous(NOISE, DRIFTS["teacher"](), L2()),
    Context(student, GaussianPreconditioned(), teacher_params=TRUTH),
  )
  output = objective.loss(CURVED, context, {"image": x}, ContinuousDraws(t, z, jax.random.key(0)), STEP)
  x_t, f, h = x + append_dims(t, x) * z, student(CURVED), 1e-4
  along = lambda s: f(DATA.path(x_t, t, t + s), t + s)
  v = (along(-h) - along(h)) / (2 * h)
  np.testing.assert_allclose(
    output.by_level["tangent_norm"], np.sqrt(np.mean(np.square(v), axis=(1, 2, 3))), rtol=1e-6
  )
  assert float(output.metrics["tangent_norm"]) == pytest.approx(float(output.by_level["tangent_norm"].mean()))


def test_weights_multiply_and_levels_are_those_asked_for(x64):
  student, t, x, z = bind_curved(), jnp.array([0.1, 0.6, 2.0, 4.5]), images(0), images(1)
  draws, context = (
    ContinuousDraws(t, z, jax.random.key(0)),
    Context(student, GaussianPreconditioned(), teacher_params=TRUTH),
  )
  plain, weighted = quick_jit(
    lambda: [
      Continuous(NOISE, DRIFTS["teacher"](), L2(), weight=WEIGHTS[name])
      .loss(CURVED, context, {"image": x}, draws, STEP)
      .per_example
      for name in ("uniform", "snr")
    ]
  )()
  np.testing.assert_allclose(weighted, plain / t**2)
  draw = Continuous(NOISE, DRIFTS["teacher"](), L2()).draw
  drawn = quick_jit(lambda key: draw(key, {"image": jnp.zeros((2000, 1, 1, 1))}, STEP).t)(jax.random.key(0))
  root = np.asarray(drawn) ** (1 / NOISE.rho)
  low, high = NOISE.sigma_min ** (1 / NOISE.rho), NOISE.sigma_max ** (1 / NOISE.rho)
  counts, _ = np.histogram(root, bins=10, range=(low, high))
  assert counts.sum() == 2000 and np.abs(counts - 200).max() < 5 * np.sqrt(200)
