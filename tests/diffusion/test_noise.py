import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.errors import UserError
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit


@pytest.mark.slow
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
  with pytest.raises(UserError, match=f"^{field} = "):
    NoiseRange(**values)
