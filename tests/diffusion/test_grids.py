import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.grids import (
  karras_below,
  karras_grid,
  karras_interval,
  karras_levels,
  karras_sigma,
  vp_sigma,
  vp_time,
)
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.golden_cases import BOTH_PRECISIONS, assert_golden, golden_case

NOISE = NoiseRange()


def test_the_grid_has_exact_ends_and_descends():
  noise = NoiseRange(sigma_min=0.003, sigma_max=80.0)
  for n in (2, 18, 1281):
    grid = np.asarray(quick_jit(lambda n=n: karras_grid(n, noise))())
    assert grid.dtype == np.float32 and grid.shape == (n,)
    assert grid[0] == np.float32(80.0) and grid[-1] == np.float32(0.003)
    assert (np.diff(grid) < 0).all()


@BOTH_PRECISIONS
def test_the_grid_is_the_peers(double):
  case = golden_case("C_openai_scalings")
  noise = NoiseRange(**case.kwargs)
  with jax.enable_x64(double):
    names = [name for name in case.outputs() if name.startswith("sigmas_karras_n")]
    assert names
    for name in names:
      n = int(name.removeprefix("sigmas_karras_n"))
      grid = np.asarray(quick_jit(lambda n=n: karras_grid(n, noise))())
      assert_golden(case, name, np.append(grid, grid.dtype.type(0)))  # the peer appends the final 0


def test_rho_and_fractional_indices(x64):
  noise = NoiseRange(sigma_min=0.01, sigma_max=20.0, rho=3.0)
  index = np.array([0.0, 0.5, 2.5, 4.0])
  want = (20.0 ** (1 / 3) + index / 4 * (0.01 ** (1 / 3) - 20.0 ** (1 / 3))) ** 3
  np.testing.assert_allclose(karras_sigma(jnp.asarray(index), 5, noise), want, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 18, 1281])
def test_the_grid_on_the_host_is_that_of_the_step(x64, n):
  np.testing.assert_allclose(karras_levels(n, NOISE), karras_grid(n, NOISE), rtol=1e-12)
  assert karras_levels(n, NOISE)[:: n - 1] == (80.0, 0.002)
  assert karras_levels(1, NOISE) == (80.0,)


@pytest.mark.parametrize("n", [2, 11, 1281])
def test_a_level_lies_in_the_interval_whose_ends_are_around_it(x64, n):
  grid = np.asarray(karras_grid(n, NOISE))
  between = np.sqrt(grid[:-1] * grid[1:])
  assert karras_interval(jnp.asarray(between), n, NOISE).tolist() == list(range(n - 1))
  outside = karras_interval(jnp.array([100.0, 1e-4]), n, NOISE)
  assert outside.tolist() == [0, n - 2] and outside.dtype == jnp.int32


@pytest.mark.parametrize("n", [2, 18, 1281])
def test_below_a_point_of_the_grid_is_the_next_and_below_the_last_is_0_at_the_latest(x64, n):
  grid = karras_grid(n, NOISE)
  np.testing.assert_allclose(karras_below(grid[:-1], n, NOISE), grid[1:], rtol=1e-9)
  below = float(karras_below(grid[-1:], n, NOISE).item())
  assert 0 <= below < 0.002


def test_n_may_be_traced(x64):
  below = quick_jit(lambda sigma, n: (karras_below(sigma, n, NOISE), karras_interval(sigma, n, NOISE)))
  sigma = jnp.array([60.0, 1.0])
  for n in (5, 50):
    got = below(sigma, jnp.int32(n))
    np.testing.assert_allclose(got[0], karras_below(sigma, n, NOISE), rtol=1e-12)
    assert got[1].tolist() == karras_interval(sigma, n, NOISE).tolist()


def test_the_variance_preserving_time_is_the_inverse_of_its_level_in_every_type(x64):
  t = np.linspace(1e-5, 1, 7)
  want = np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)
  for sigma in (np.array([vp_sigma(float(value)) for value in t]), vp_sigma(t), vp_sigma(jnp.asarray(t))):
    np.testing.assert_allclose(sigma, want, rtol=1e-9)
  np.testing.assert_allclose(vp_time(jnp.asarray(want)), t, rtol=1e-9)
  assert vp_time(vp_sigma(0.3)) == pytest.approx(0.3, rel=1e-12)
