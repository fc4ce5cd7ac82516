import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.drifts import drift_of
from cm_jax.diffusion.grids import karras_below, karras_grid
from cm_jax.diffusion.solvers import SOLVERS, euler, heun, integrate
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian

DATA = Gaussian(mean=0.2, std=0.5)


def start(noise: NoiseRange) -> jax.Array:
  return jnp.asarray(
    noise.sigma_max * np.random.default_rng(0).normal(size=(3, 2, 2, 1)), jnp.result_type(float)
  )


def level(sigma: float) -> jax.Array:
  return jnp.asarray(np.full(3, sigma), jnp.result_type(float))


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize(
  "noise", [NoiseRange(), NoiseRange(sigma_min=0.05, sigma_max=5.0, rho=3.0)], ids=["edm", "short"]
)
def test_the_global_error_falls_with_the_order_of_the_solver(x64, name, noise):
  x = start(noise)
  truth = np.asarray(quick_jit(DATA.path)(x, level(noise.sigma_max), level(noise.sigma_min)))

  def error(num_scales: int) -> float:
    grid = karras_grid(num_scales, noise)
    end = quick_jit(lambda: integrate(drift_of(DATA.denoise), x, grid, SOLVERS[name]))()
    return float(np.abs(end - truth).max())

  errors = [error(n + 1) for n in (128, 256)]
  rate = np.log2(errors[0] / errors[1])
  assert abs(rate - SOLVERS[name].order) < 0.1, (errors, rate)
  assert errors[1] < 0.02 * np.abs(truth).max()


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_the_local_error_is_one_order_higher(x64, name):
  x, t = start(NoiseRange(sigma_max=3.0)), level(3.0)

  step = lambda r: SOLVERS[name](drift_of(DATA.denoise), x, t, r)
  error = quick_jit(lambda r: jnp.abs(step(r) - DATA.path(x, t, r)).max())
  rate = np.log2(float(error(t - 0.02)) / float(error(t - 0.01)))
  assert abs(rate - SOLVERS[name].order - 1) < 0.05


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_step_evaluates_the_drift_as_often_as_it_says(name):
  seen = []

  def drift(x, sigma):
    seen.append(sigma)
    return DATA.drift(x, sigma)

  SOLVERS[name](drift, start(NoiseRange(sigma_max=2.0)), level(2.0), level(1.0))
  assert len(seen) == SOLVERS[name].evaluations


def test_heun_is_the_mean_of_both_drifts_by_hand(x64):
  drift = lambda x, sigma: x**2 * sigma[:, None, None, None]
  x = jnp.full((1, 1, 1, 1), 3.0)
  predicted = 3 + (1.5 - 2) * 9 * 2
  want = 3 + 0.5 * (1.5 - 2) * (9 * 2 + predicted**2 * 1.5)
  assert heun(drift, x, jnp.full(1, 2.0), jnp.full(1, 1.5)).item() == pytest.approx(want, rel=1e-14)
  assert euler(drift, x, jnp.full(1, 2.0), jnp.full(1, 1.5)).item() == pytest.approx(predicted, rel=1e-14)


def test_at_r_of_zero_heun_is_euler_and_has_a_gradient():
  x, t, r = start(NoiseRange(sigma_max=1.0)), jnp.array([1.0, 0.5, 2.0]), jnp.array([0.0, 0.25, 0.0])
  drift = drift_of(DATA.denoise)
  got, flat, denoised = quick_jit(lambda: (heun(drift, x, t, r), euler(drift, x, t, r), DATA.denoise(x, t)))()
  assert (got[0] == flat[0]).all() and (got[2] == flat[2]).all() and (got[1] != flat[1]).all()
  # To noise level 0 one Euler step is a denoise.
  np.testing.assert_allclose(got[0], denoised[0], atol=1e-6)
  grads = quick_jit(jax.grad(lambda x, t, r: heun(drift, x, t, r).sum(), argnums=(0, 1, 2)))(x, t, r)
  assert all(bool(jnp.isfinite(grad).all()) for grad in grads)


def test_integration_is_repeated_steps_both_ways():
  x, grid = start(NoiseRange(sigma_max=2.0)), jnp.array([2.0, 1.0, 0.3])
  drift = drift_of(DATA.denoise)
  two_steps = lambda x: heun(drift, heun(drift, x, level(2.0), level(1.0)), level(1.0), level(0.3))
  fine = jnp.asarray(np.linspace(2.0, 0.3, 100))
  there_and_back = lambda x: integrate(drift, integrate(drift, x, fine), fine[::-1])
  got, want, back = quick_jit(lambda x: (integrate(drift, x, grid), two_steps(x), there_and_back(x)))(x)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(back, x, rtol=1e-3)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_examples_may_have_grids_of_their_own(name):
  drift, solver = drift_of(DATA.denoise), SOLVERS[name]
  x = start(NoiseRange(sigma_max=2.0))
  # [N, B]; a step to itself changes nothing
  grids = jnp.array([[2.0, 5.0, 0.5], [1.0, 5.0, 0.4], [0.3, 1.0, 0.0]])
  together = quick_jit(lambda x, grids: integrate(drift, x, grids, solver))(x, grids)
  alone = quick_jit(lambda x, grid: integrate(drift, x, grid, solver))
  for i in range(3):
    np.testing.assert_allclose(together[i : i + 1], alone(x[i : i + 1], grids[:, i]), rtol=1e-6)


def test_a_chain_of_levels_below_follows_the_path_to_its_end(x64):
  """What self-consistency walks: from any level down its own way, one interval of the grid at a time."""
  noise, x, t = NoiseRange(), start(NoiseRange(sigma_max=1.0)), jnp.array([0.01, 0.5, 80.0])
  chain = [t]
  for _ in range(256):
    chain.append(jnp.maximum(karras_below(chain[-1], 256, noise), noise.sigma_min))
  end = quick_jit(lambda x, grids: integrate(drift_of(DATA.denoise), x, grids))(x, jnp.stack(chain))
  assert (chain[-1] == noise.sigma_min).all()
  np.testing.assert_allclose(end, DATA.path(x, t, chain[-1]), rtol=1e-3, atol=1e-4)
