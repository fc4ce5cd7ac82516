import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.drifts import DRIFTS, MonteCarlo, Teacher, drift_of, monte_carlo_drift
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.solvers import SOLVERS
from cm_jax.types import Condition, Context
from tests.compiling import quick_jit
from tests.gaussian import Gaussian, GaussianPreconditioned

DATA = Gaussian(mean=0.2, std=0.5)
SAMPLES = 400_000


def test_the_teachers_drift_is_the_exact_one(x64):
  x, sigma = np.random.default_rng(0).normal(size=(4, 2, 2, 1)), np.array([0.01, 0.5, 3.0, 80.0])
  got = quick_jit(drift_of(DATA.denoise))(x, sigma)
  np.testing.assert_allclose(got, DATA.drift(x, sigma), rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(got, -append_dims(sigma, x) * DATA.score(x, sigma), rtol=1e-9, atol=1e-12)


def test_the_closed_form_is_consistent_with_itself(x64):
  """The truth the other tests rest on: score and path against derivatives of what defines them."""
  x, t = jnp.array(1.3), jnp.array(0.7)
  log_density = lambda x: -0.5 * (x - DATA.mean) ** 2 / (DATA.std**2 + t**2)
  at = lambda function, x, t: function(x.reshape(1, 1, 1, 1), t[None]).reshape(())
  path = lambda r: DATA.path(x.reshape(1, 1, 1, 1), t[None], r[None]).reshape(())
  score, want = quick_jit(lambda: (at(DATA.score, x, t), jax.grad(log_density)(x)))()
  assert float(score) == pytest.approx(float(want), rel=1e-12)
  along = quick_jit(lambda r: (path(r), jax.grad(path)(r), at(DATA.drift, path(r), r)))
  for r in (0.05, 0.7, 2.0):
    _, velocity, drift = along(r)
    assert float(velocity) == pytest.approx(float(drift), rel=1e-12)
  assert float(along(t)[0]) == pytest.approx(1.3)


def test_the_closed_form_flow_map_follows_the_path(x64):
  x, sigma = np.random.default_rng(0).normal(size=(4, 2, 2, 1)), np.array([0.01, 0.5, 3.0, 80.0])
  both = quick_jit(lambda s: (DATA.flow_map(x, sigma, s), DATA.path(x, sigma, s), DATA.denoise(x, sigma)))
  for share in (0.0, 0.3, 0.999):
    g, end, _ = map(np.asarray, both(share * sigma))
    np.testing.assert_allclose(share * x + (1 - share) * g, end, rtol=1e-12, atol=1e-13)
  g, _, D = both(sigma)
  np.testing.assert_allclose(g, D, rtol=1e-12, atol=1e-13)


def test_where_a_drift_comes_from():
  x, sigma = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32), jnp.array([0.1, 1.0, 5.0])
  condition, seen = Condition(jnp.array([0, -1, 2])), []

  def denoiser(x, sigma):
    return DATA.denoise(x, sigma)

  def teacher(params, condition, key=None):
    seen.append((params, condition, key))
    return denoiser

  assert set(DRIFTS.values()) == {Teacher, MonteCarlo}
  context = Context(student=None, teacher=teacher, teacher_params={"net": 1})
  got = Teacher()(context, {"image": x}, condition)(x, sigma)
  np.testing.assert_array_equal(got, drift_of(denoiser)(x, sigma))
  assert seen == [({"net": 1}, condition, None)]  # frozen, under the condition, in evaluation mode
  got = MonteCarlo()(Context(student=None), {"image": x}, condition)(2 * x, sigma)
  np.testing.assert_allclose(got, x / append_dims(sigma, x), rtol=1e-6)
  assert Teacher.needs_teacher and not MonteCarlo.needs_teacher
  with pytest.raises(ValueError, match=r"needs context\.teacher"):
    Teacher()(Context(student=None), {"image": x}, condition)


def test_the_gaussians_raw_network_is_that_of_its_preconditioning(x64):
  """The closed-form F, through the preconditioning again, is the denoiser; its flow map begins at it."""
  bound, params = GaussianPreconditioned(), {"net": {"mean": DATA.mean, "std": DATA.std}}
  x, sigma = np.random.default_rng(0).normal(size=(3, 2, 2, 1)), np.array([0.1, 1.0, 5.0])

  @quick_jit
  def three(x, sigma):
    c_skip, c_out, c_in, c_noise = bound.precond(sigma)
    F = bound.raw(params, append_dims(c_in, x) * x, c_noise)
    again = append_dims(c_skip, x) * x + append_dims(c_out, x) * F
    return again, bound.flow_map(params)(x, sigma, sigma), bound(params)(x, sigma)

  again, g, D = three(x, sigma)
  np.testing.assert_allclose(again, D, rtol=1e-12)
  np.testing.assert_allclose(g, D, rtol=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("offset", [-1.0, 0.0, 2.0])
def test_the_monte_carlo_drift_is_unbiased_given_x_t(x64, t, offset):
  """E[drift | x_t], over data from the prior weighted by how likely it makes x_t, is the exact drift.

  Tolerance: five standard errors of the weighted mean (delta method), which are themselves under 2 % of the
  spread of the estimate.
  """
  x_t = DATA.mean + offset * float(np.hypot(DATA.std, t))
  x = DATA.mean + DATA.std * np.random.default_rng(0).normal(size=(SAMPLES, 1, 1, 1))
  likelihood = np.exp(-0.5 * ((x_t - x) / t) ** 2).ravel()
  weight = likelihood / likelihood.sum()
  at = np.full_like(x, x_t), np.full(SAMPLES, t)
  estimates = np.asarray(monte_carlo_drift(x)(*at)).ravel()
  mean = (weight * estimates).sum()
  error = np.sqrt((weight**2 * (estimates - mean) ** 2).sum())
  spread = np.sqrt((weight * (estimates - mean) ** 2).sum())
  exact = float(DATA.drift(at[0][:1], at[1][:1]).item())
  assert error < 0.02 * spread
  assert abs(mean - exact) < 5 * error, (mean, exact, error)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_along_the_monte_carlo_drift_x_t_moves_to_x_plus_r_z(x64, name):
  x, z = np.random.default_rng(0).normal(size=(2, 5, 2, 2, 3))
  t, r = np.array([0.01, 0.5, 3.0, 80.0, 80.0]), np.array([0.002, 0.0, 2.9, 1.0, 0.0])
  step = quick_jit(lambda x_t, t, r: SOLVERS[name](monte_carlo_drift(x), x_t, t, r))
  got = step(x + append_dims(t, x) * z, t, r)
  np.testing.assert_allclose(got, x + append_dims(r, x) * z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_in_float32_it_is_off_by_rounding_only_on_a_grid(name):
  x, z = np.random.default_rng(0).normal(size=(2, 4, 8, 8, 1)).astype(np.float32)
  t, r = np.array([[0.0022, 0.5, 4.0, 80.0], [0.002, 0.4, 3.5, 70.0]], np.float32)
  step = quick_jit(lambda x_t, t, r: SOLVERS[name](monte_carlo_drift(x), x_t, t, r))
  got = step(x + append_dims(t, x) * z, t, r)
  error = np.abs(got - x - append_dims(r, x) * z).max(axis=(1, 2, 3))
  assert (error < 2e-6 * np.maximum(1, t)).all(), error
