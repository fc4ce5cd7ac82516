"""Progressive distillation: the aim by hand, on Gaussian data, and its halving schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import constant, halving
from cm_jax.diffusion.distances import L2
from cm_jax.diffusion.drifts import drift_of
from cm_jax.diffusion.grids import karras_sigma
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.solvers import euler
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.errors import UserError
from cm_jax.objectives.progressive import Progressive, ProgressiveDraws
from cm_jax.sampling.ode import Euler
from cm_jax.types import Context, NoiseRange
from tests.gaussian import Gaussian, GaussianPreconditioned

NOISE = NoiseRange(sigma_min=0.05, sigma_max=5.0)
DATA = Gaussian(mean=0.2, std=0.5)
TRUTH = {"net": {"mean": 0.2, "std": 0.5}}
STEP = np.int32(0)


class Fixed:
  """A student whose denoiser is given."""

  def __init__(self, denoise):
    self.denoise = denoise

  def __call__(self, params, condition=None, key=None):
    return self.denoise


def batch_at(num_steps: int):
  rng = np.random.default_rng(0)
  x, z = (jnp.asarray(rng.normal(size=(num_steps, 2, 2, 1))) for _ in range(2))
  objective = Progressive(NOISE, constant(num_steps))
  t, mid, r = objective.at(jnp.arange(num_steps), num_steps)
  return objective, x, ProgressiveDraws(t, mid, r, z, jax.random.key(0))


def test_one_step_of_the_aim_lands_where_two_of_the_teacher_do(x64):
  objective, x, draws = batch_at(4)
  x_t = x + append_dims(draws.t, x) * draws.z
  drift = drift_of(DATA.denoise)
  landing = euler(drift, euler(drift, x_t, draws.t, draws.mid), draws.mid, draws.r)
  # The denoiser whose Euler step from t to r lands there, solved for by hand: x_t + (r - t)(x_t - D)/t =
  # landing.
  aim = x_t - append_dims(draws.t / (draws.r - draws.t), x) * (landing - x_t)
  context = Context(Fixed(lambda x, sigma: aim), GaussianPreconditioned(), teacher_params=TRUTH)
  output = objective.loss(None, context, {"image": x}, draws, STEP)
  assert float(jnp.abs(output.per_example).max()) < 1e-20
  off = context._replace(student=Fixed(lambda x, sigma: aim + 0.1))
  output = objective.loss(None, off, {"image": x}, draws, STEP)
  np.testing.assert_allclose(output.per_example, 0.01 * np.maximum(1 / draws.t**2, 1), rtol=1e-6)
  np.testing.assert_allclose(output.noise_level, draws.t)


def test_the_levels_are_those_of_its_sampler(x64):
  _, _, draws = batch_at(4)
  np.testing.assert_allclose(draws.t, Euler(NOISE, 4).sigmas, rtol=1e-12)
  np.testing.assert_allclose([*draws.t, draws.r[-1]][1:], draws.r, rtol=1e-12)
  assert float(draws.r[-1]) == NOISE.sigma_min
  np.testing.assert_allclose(draws.mid, karras_sigma(jnp.arange(4) + 0.5, 5, NOISE))
  assert bool((draws.t > draws.mid).all()) and bool((draws.mid > draws.r).all())


@pytest.mark.slow
def test_with_many_steps_the_exact_denoiser_is_least(x64):
  """The aim tends to the teacher's own denoiser, with the order of Euler's steps."""

  def rms(num_steps: int) -> float:
    objective, x, draws = batch_at(num_steps)
    context = Context(GaussianPreconditioned(), GaussianPreconditioned(), teacher_params=TRUTH)
    plain = Progressive(NOISE, objective.scales, L2(), WEIGHTS["uniform"])
    return float(np.sqrt(plain.loss(TRUTH, context, {"image": x}, draws, STEP).loss))

  errors = [rms(n) for n in (64, 128, 256)]
  rates = np.log2(np.array(errors[:-1]) / errors[1:])
  assert errors[-1] < 0.01 and (rates > 0.7).all(), (errors, rates)


def test_the_schedule_is_jcms():
  """M = 4096 / 2^floor(k / 50k), then 2 and 1 for 100k each: 1 from 650k on (jcm `losses.py`, closed
  form)."""
  scales = halving(4096, 50_000, 100_000)
  first = 50_000 * (12 - 1)

  def closed(k: int) -> int:
    return 4096 >> (k // 50_000) if k < first else 2 if k < first + 100_000 else 1

  for k in (0, 1, 49_999, 50_000, 123_456, first - 1, first, first + 99_999, first + 100_000, 749_999):
    assert int(scales(k)) == closed(k), k
  assert scales.starts[-1] == 650_000 and scales.end == 750_000
  assert Progressive(NOISE, scales).needs.stages == (*range(0, 600_000, 50_000), 650_000, 750_000)
  assert Progressive(NOISE, constant(4)).needs.stages == ()


@pytest.mark.parametrize(
  ("fields", "name"), [((3, 10), "first"), ((0, 10), "first"), ((4, 0), "stage_steps")]
)
def test_bad_schedules_are_refused(fields, name):
  with pytest.raises(UserError, match=name):
    halving(*fields)
