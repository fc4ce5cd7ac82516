import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.precond import ECT, EDM, PRECONDS, Boundary
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.golden_cases import BOTH_PRECISIONS, assert_golden, golden_case

# A preconditioning is for consistency models unless it is a diffusion model's: a new entry has to hold the
# boundary, or be named here.
DIFFUSION_ONLY = {"edm", "vp", "ve", "iddpm"}
AT_ZERO = {"trigflow"}  # the identity at sigma = 0, where its process starts
CONSISTENCY = sorted(set(PRECONDS) - DIFFUSION_ONLY - AT_ZERO)


def large_net(params, x, c_noise, condition, *, key=None):
  """A network whose output is far from 0 wherever it is asked."""
  return 100.0 + 10 * jnp.sin(50 * x) + append_dims(c_noise, x)


@pytest.mark.parametrize("name", CONSISTENCY)
@pytest.mark.parametrize("sigma_min", [0.002, 0.003, 0.05])
def test_a_consistency_function_is_the_identity_at_sigma_min(name, sigma_min):
  noise = NoiseRange(sigma_min=sigma_min)
  x = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
  f = quick_jit(Preconditioned(large_net, PRECONDS[name](noise))({"net": None}))
  assert float(jnp.abs(f(x, jnp.full(4, sigma_min)) - x).max()) == 0.0
  assert float(jnp.abs(f(x, jnp.full(4, 2 * sigma_min)) - x).max()) > 0.01  # and not elsewhere


@pytest.mark.parametrize("name", CONSISTENCY)
def test_the_boundary_holds_in_float64(x64, name):
  x = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
  f = quick_jit(Preconditioned(large_net, PRECONDS[name](NoiseRange()))({"net": None}))
  assert float(jnp.abs(f(x, jnp.full(2, 0.002)) - x).max()) == 0.0


@pytest.mark.parametrize("name", sorted(AT_ZERO))
def test_trigflows_boundary_is_at_zero(name):
  x = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
  f = quick_jit(Preconditioned(large_net, PRECONDS[name](NoiseRange()))({"net": None}))
  assert float(jnp.abs(f(x, jnp.zeros(4)) - x).max()) == 0.0
  assert float(jnp.abs(f(x, jnp.full(4, 0.002)) - x).max()) > 0.01


def test_ect_is_edm_in_training_and_the_boundary_form_in_evaluation():
  noise, sigma = NoiseRange(sigma_min=0.003), jnp.array([0.003, 0.5, 80.0])
  precond = ECT(noise)
  for got, want in (
    (precond(sigma, train=True), EDM(noise)(sigma)),
    (precond(sigma, train=False), Boundary(noise)(sigma)),
  ):
    assert all((a == b).all() for a, b in zip(got, want, strict=True))


@BOTH_PRECISIONS
def test_scalings_and_weights_are_openais(double):
  case = golden_case("C_openai_scalings")
  noise = NoiseRange(**case.kwargs)
  weights = {
    "snr": "snr",
    "snr+1": "snr_plus_one",
    "karras": "karras",
    "truncated-snr": "truncated_snr",
    "uniform": "uniform",
  }
  with jax.enable_x64(double):
    sigma = jnp.asarray(case.input("sigma"), jnp.result_type(float))
    for prefix, precond in (("std", EDM(noise)), ("boundary", Boundary(noise))):
      scalings = quick_jit(precond)(sigma)
      for field in ("c_skip", "c_out", "c_in"):
        assert_golden(case, f"{prefix}_{field}", getattr(scalings, field))
    for theirs, ours in weights.items():
      assert_golden(case, f"weight_{theirs}", WEIGHTS[ours](sigma, sigma, noise.sigma_data))


def test_c_noise(x64):
  sigma = jnp.array([0.002, 1.0, 80.0])
  for precond in (EDM, Boundary):
    np.testing.assert_allclose(precond(NoiseRange())(sigma).c_noise, np.log(sigma) / 4, rtol=1e-15)
    np.testing.assert_allclose(
      precond(NoiseRange(), time_scale=1000.0)(sigma).c_noise, 250 * np.log(sigma), rtol=1e-15
    )


@pytest.mark.parametrize("name", sorted(PRECONDS))
def test_what_f_is_in_trigflow_is_its_velocity_or_said_to_be_nothing(x64, name):
  """F_trig = (cos t x_t - D)/(sigma_data sin t) of x_t = cos t x, which is 0/0 at t = 0 (sCM eq. 4)."""
  noise = NoiseRange(sigma_data=0.7)
  precond = PRECONDS[name](noise)
  if precond.trigflow is None:
    return
  t, x = jnp.array([0.05, 0.7, 1.5]), np.random.default_rng(0).normal(size=(3, 2, 2, 1))
  net = Preconditioned(large_net, precond)
  x_t, sigma = append_dims(jnp.cos(t), x) * x, 0.7 * jnp.tan(t)
  D = net({"net": None})(jnp.asarray(x), sigma)
  want = (append_dims(jnp.cos(t), x) * x_t - D) / append_dims(0.7 * jnp.sin(t), x)
  sign, c_noise, rate = precond.trigflow(t)
  np.testing.assert_allclose(sign * net.raw({"net": None}, x_t / 0.7, c_noise), want, rtol=1e-9)
  slope = jax.jvp(lambda t: precond.trigflow(t).c_noise, (t,), (jnp.ones_like(t),))[1]
  np.testing.assert_allclose(rate, jnp.cos(t) * jnp.sin(t) * slope, rtol=1e-9)


def test_which_preconditionings_mean_something_in_trigflow():
  meaningful = {name for name in PRECONDS if PRECONDS[name](NoiseRange()).trigflow is not None}
  assert meaningful == {"edm", "trigflow"}
