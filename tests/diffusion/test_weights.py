import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.precond import EDM
from cm_jax.diffusion.weights import inverse_gap, karras
from cm_jax.types import NoiseRange


def test_karras_is_the_inverse_square_of_c_out(x64):
  t = jnp.geomspace(0.002, 80.0, 20)
  for sigma_data in (0.5, 0.3):
    want = EDM(NoiseRange(sigma_data=sigma_data))(t).c_out ** -2
    np.testing.assert_allclose(karras(t, t / 2, sigma_data), want, rtol=1e-12)


def test_inverse_gap_is_the_only_one_that_sees_r():
  np.testing.assert_allclose(inverse_gap(jnp.array([3.0, 0.5]), jnp.array([1.0, 0.0]), 0.5), [0.5, 2.0])
