"""The consistency sampler and Heun's: by hand, against EDM's numbers, their order, what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.grids import karras_grid
from cm_jax.errors import UserError
from cm_jax.sampling.multistep import Multistep, check_sigmas
from cm_jax.sampling.ode import Heun
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian
from tests.golden_cases import assert_golden, channels_first, channels_last, golden_case

NOISE = NoiseRange()
DATA = Gaussian(mean=0.2, std=0.5)
SHAPE = (2, 3, 3, 1)


def noise(k: int, shape: tuple[int, ...]) -> jax.Array:
  """Return draws that any run of the test repeats."""
  return jnp.asarray(np.random.default_rng(k).normal(size=shape), jnp.result_type(float))


def recorded(denoiser, calls: list):
  def denoise(x, sigma):
    calls.append((x, sigma))
    return denoiser(x, sigma)

  return denoise


def test_one_step_is_one_denoise_of_pure_noise(x64):
  calls = []
  sampler = Multistep(NOISE, sigmas=(80.0,))
  got = sampler(recorded(DATA.denoise, calls), noise, SHAPE)
  ((x, sigma),) = calls
  np.testing.assert_allclose(x, 80 * noise(0, SHAPE), rtol=1e-15)
  assert sigma.shape == (2,) and (sigma == 80).all() and sampler.nfe == 1
  np.testing.assert_array_equal(got, DATA.denoise(x, sigma))


@pytest.mark.parametrize("clip", [True, False])
def test_multistep_is_algorithm_1_by_hand(x64, clip):
  sigmas, sigma_min = (80.0, 5.0, 0.8), 0.01
  f = lambda x, sigma: 5 * DATA.denoise(x, sigma)  # leaves [-1, 1]
  x = np.asarray(f(sigmas[0] * noise(0, SHAPE), jnp.full(2, sigmas[0])))
  clipped = 0
  for k, sigma in enumerate(sigmas[1:], start=1):
    clipped += (np.abs(x) > 1).sum()
    x = np.clip(x, -1, 1) if clip else x
    x = np.asarray(f(x + math.sqrt(sigma**2 - sigma_min**2) * noise(k, SHAPE), jnp.full(2, sigma)))
  assert clipped
  calls = []
  sampler = Multistep(NoiseRange(sigma_min=sigma_min), sigmas, clip)
  np.testing.assert_allclose(sampler(recorded(f, calls), noise, SHAPE), x, rtol=1e-13)
  assert len(calls) == sampler.nfe == 3
  assert [float(sigma[0]) for _, sigma in calls] == list(sigmas)


def test_every_step_of_multistep_starts_with_the_right_amount_of_noise(x64):
  """For the exact consistency function every denoised x, and so the result, has the data's distribution."""
  sampler = Multistep(NoiseRange(sigma_min=0.05), (80.0, 2.0, 0.4), clip=False)
  x = np.asarray(sampler(DATA.consistency(0.05), noise, (20_000, 1, 1, 1)))
  std = math.sqrt(DATA.std**2 + 0.05**2)
  # The first step starts from N(0, 80^2), not N(0.2, 80.0016^2), which moves less than five standard errors.
  assert abs(x.mean() - DATA.mean) < 5 * std / math.sqrt(20_000)
  assert abs(x.std() - std) < 5 * std / math.sqrt(40_000)


@pytest.mark.parametrize(
  "double", [pytest.param(False, marks=pytest.mark.slow), True], ids=["float32", "float64"]
)
def test_heun_is_edms(double):
  case = golden_case("D_edm_sampler")
  runs = {
    run: options["kwargs"] for run, options in case.meta["runs"].items() if options["fn"] == "edm_sampler"
  }
  deterministic = {run: kwargs for run, kwargs in runs.items() if not kwargs.get("S_churn")}
  assert deterministic
  with jax.enable_x64(double):
    w, mu, s = (case.input(f"gmm_{name}") for name in ("w", "mu", "s"))
    mu, latents = channels_last(mu), channels_last(case.input("latents"))
    d = mu[0].size

    def denoise(x, sigma):
      variance = jnp.asarray(s)[None] ** 2 + sigma[:, None] ** 2
      distance = jnp.square(x[:, None] - mu[None]).sum((2, 3, 4))
      r = jax.nn.softmax(
        jnp.log(jnp.asarray(w))[None] - 0.5 * d * jnp.log(variance) - 0.5 * distance / variance
      )
      each = lambda v: v[:, :, None, None, None]
      kept, moved = jnp.asarray(s)[None, :, None, None, None] ** 2, sigma[:, None, None, None, None] ** 2
      means = (kept * x[:, None] + moved * mu[None]) / each(variance)
      return (each(r) * means).sum(1).astype(x.dtype)

    for run, kwargs in deterministic.items():
      given = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, **kwargs}
      sampler = Heun(NoiseRange(given["sigma_min"], given["sigma_max"], rho=given["rho"]), given["num_steps"])
      got = quick_jit(
        lambda latents, sampler=sampler: sampler(denoise, lambda k, shape: latents, latents.shape)
      )(latents)
      assert_golden(case, f"{run}__final", channels_first(got))
      assert sampler.nfe == len(case.arrays[f"out_{run}__call_sigma"])
      np.testing.assert_allclose(
        sampler.sigmas, np.unique(case.arrays[f"out_{run}__call_sigma"])[::-1], rtol=1e-5
      )


def test_heun_is_second_order_in_its_number_of_steps(x64):
  shape, sigma_min = (3, 2, 2, 1), NOISE.sigma_min
  x = 80 * noise(0, shape)
  level = lambda sigma: jnp.full(3, sigma)
  # The last step, to 0, is a denoise, whatever the number of steps.
  truth = DATA.denoise(DATA.path(x, level(80.0), level(sigma_min)), level(sigma_min))

  def error(intervals: int) -> float:
    sampler = Heun(NOISE, intervals + 1)
    return float(jnp.abs(quick_jit(lambda: sampler(DATA.denoise, noise, shape))() - truth).max())

  errors = [error(n) for n in (32, 64, 128)]
  rates = np.log2(np.array(errors[:-1]) / errors[1:])
  assert np.abs(rates - 2).max() < 0.15, errors


EVERY_NFE = {
  "one step": Multistep(NOISE, (80.0,)),
  "two steps": Multistep(NOISE, (80.0, 0.8)),
  "heun 1": Heun(NOISE, 1),
  "heun 2": Heun(NOISE, 2),
  "heun 7": Heun(NOISE, 7),
}


@pytest.mark.parametrize("name", EVERY_NFE)
def test_nfe_counts_the_evaluations_and_the_last_one_is_the_result(name):
  calls = []

  def denoiser(x, sigma):
    assert x.shape == SHAPE and sigma.shape == SHAPE[:1]
    jax.debug.callback(lambda: calls.append(1))  # once each time it runs, in a loop too
    return jnp.where(x > 0, 0.5, -0.5)

  got = quick_jit(lambda: EVERY_NFE[name](denoiser, noise, SHAPE))()
  jax.effects_barrier()
  assert len(calls) == EVERY_NFE[name].nfe
  assert set(np.unique(got)) <= {-0.5, 0.5}
  assert got.dtype == jnp.float32


def test_one_step_of_heun_is_a_denoise_at_sigma_max(x64):
  sampler = Heun(NOISE, 1)
  got = sampler(DATA.denoise, noise, SHAPE)
  np.testing.assert_allclose(got, DATA.denoise(80 * noise(0, SHAPE), jnp.full(2, 80.0)), rtol=1e-13)
  assert sampler.sigmas == (80.0,)


def test_the_grid_of_heun_is_the_karras_grid():
  np.testing.assert_allclose(Heun(NOISE, 18).sigmas, karras_grid(18, NOISE), rtol=1e-6)
  assert Heun(NOISE, 18).nfe == 35


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
  "sigmas",
  [
    *((), (0.8, 80.0), (80.0, 80.0), (80.0, 0.002), (80.0, 0.0), (80.0, -1.0), (100.0,), (NAN,), (80.0, INF)),
    *(("a",), (None,), 80.0, None),
  ],
  ids=repr,
)  # fmt: skip
def test_bad_noise_levels_are_refused(sigmas):
  with pytest.raises(
    UserError, match=r"^sigmas = .*: expected one or more descending noise levels in \(0.002, 80\]"
  ):
    check_sigmas(sigmas, NOISE)
  with pytest.raises(UserError, match=r"^sigmas = "):
    Multistep(NOISE, sigmas)


@pytest.mark.parametrize("num_steps", [0, -3, 2.5, "18", None])
def test_a_bad_number_of_steps_is_refused(num_steps):
  with pytest.raises(UserError, match=r"^num_steps = "):
    Heun(NOISE, num_steps)


def test_noise_levels_are_floats_and_the_first_may_be_below_sigma_max():
  assert check_sigmas([80, 1], NOISE) == (80.0, 1.0)
  assert Multistep(NOISE, [5.0]).sigmas == (5.0,)
