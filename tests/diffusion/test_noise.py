import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.noise import karras_grid, karras_sigma, lognormal_sigma, per_sample_noise
from cm_jax.errors import UserError
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.golden_cases import BOTH_PRECISIONS, assert_golden, golden_case


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


def test_lognormal_sigma_has_the_stated_moments():
  log_sigma = np.log(lognormal_sigma(np.random.default_rng(0).normal(size=100_000), -1.1, 2.0))
  # Standard errors: 2 / sqrt(n) = 0.006 of the mean, 0.7 of that of the deviation; five of each.
  assert abs(log_sigma.mean() + 1.1) < 0.032
  assert abs(log_sigma.std() - 2.0) < 0.023


def test_noise_of_a_sample_is_the_same_in_any_batch():
  key, shape = jax.random.key(3), (5, 4, 3)
  # Compiled as in production: bit-equality must survive vectorisation.
  draw = jax.jit(lambda indices: per_sample_noise(key, indices)(1, (indices.shape[0], *shape)))
  alone = {i: np.asarray(draw(jnp.array([i])))[0] for i in (0, 7, 100_000)}
  for batch in ((100_000, 7, 0), (*range(33), 100_000)):
    together = np.asarray(draw(jnp.array(batch)))
    for i, reference in alone.items():
      if i in batch:
        assert (together[batch.index(i)] == reference).all()


def test_noise_differs_between_samples_draws_and_keys_and_is_standard_normal():
  draw = quick_jit(lambda seed, k: per_sample_noise(jax.random.key(seed), jnp.arange(2))(k, (2, 60, 60, 1)))
  flat = np.concatenate([np.asarray(draw(seed, k)).reshape(2, -1) for seed, k in ((0, 0), (0, 1), (1, 0))])
  correlation = flat @ flat.T / flat.shape[1]
  np.testing.assert_allclose(correlation, np.eye(len(flat)), atol=5 * np.sqrt(2 / flat.shape[1]))
  assert np.abs(flat.mean(axis=1)).max() < 5 / np.sqrt(flat.shape[1])


@pytest.mark.parametrize(
  ("field", "values"),
  [
    ("sigma_min", {"sigma_min": 0.0}),
    ("sigma_min", {"sigma_min": float("nan")}),
    ("sigma_max", {"sigma_max": 0.001}),
    ("sigma_max", {"sigma_max": float("inf")}),
    ("sigma_data", {"sigma_data": -0.5}),
    ("sigma_data", {"sigma_data": "0.5"}),
    ("rho", {"rho": 0.5}),
  ],
)
def test_a_bad_noise_range_is_refused(field, values):
  with pytest.raises(UserError, match=f"config.noise.{field}"):
    NoiseRange(**values)
