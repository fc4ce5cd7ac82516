"""Every sampler on Gaussian data, whose trajectories are known; what `make_generator` adds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError
from cm_jax.sampling import SAMPLERS
from cm_jax.sampling.ablation import DISCRETIZATIONS, SCALINGS, SCHEDULES, Ablation
from cm_jax.sampling.choose import choose_samplers, make_sampler
from cm_jax.sampling.generate import make_generator
from cm_jax.sampling.grids import GRIDS
from cm_jax.sampling.guidance import guided
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Ancestral, Dpm2, Euler, Heun
from cm_jax.types import Domain, NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian, GaussianPreconditioned
from tests.sampling.models import GAUSSIAN, model_of

NOISE = NoiseRange()
DATA = Gaussian(mean=0.2, std=0.5)
COUNT = 20_000

# Enough steps each that what the discretisation leaves is below the sampling error.
SOLVERS = {
  "heun": Heun(NOISE, 40),
  "heun, churn": Heun(NOISE, 80, S_churn=40.0),
  "heun, churn in between": Heun(NOISE, 80, S_churn=30.0, S_min=0.05, S_max=50.0),
  "heun without the last denoise": Heun(NOISE, 40, denoise=False),
  "euler": Euler(NOISE, 800, denoise=True),
  "euler without the last denoise": Euler(NOISE, 800),
  "dpm2": Dpm2(NOISE, 40),
  "ancestral": Ancestral(NOISE, 800),
  **{
    f"ablation {d} {s} {c}": Ablation(NOISE, 1000, d, s, c)
    for d in DISCRETIZATIONS
    for s in SCHEDULES
    for c in SCALINGS
  },
}


def noise(k, shape: tuple[int, ...]) -> jax.Array:
  """Return draws that any run of the test repeats; `k` may be traced."""
  return jax.random.normal(jax.random.fold_in(jax.random.key(3), k), shape, jnp.result_type(float))


def test_the_solvers_and_the_consistency_sampler_are_all_there_is():
  assert {type(sampler) for sampler in SOLVERS.values()} | {Multistep} == set(SAMPLERS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_have_the_datas_mean_and_variance(x64, name):
  sampler = SOLVERS[name]
  x = np.asarray(quick_jit(lambda: sampler(DATA.denoise, noise, (COUNT, 1, 1, 1)))())
  # Five standard errors. The start, N(0, sigma_max^2) for N(0.2, sigma_max^2 + 0.25), moves less.
  assert abs(x.mean() - DATA.mean) < 5 * DATA.std / np.sqrt(COUNT), x.mean()
  assert abs(x.std() - DATA.std) < 5 * DATA.std / np.sqrt(2 * COUNT), x.std()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "order"),
  [
    (lambda n: Euler(NOISE, n), 1),
    (lambda n: Heun(NOISE, n + 1, denoise=False), 2),
    (lambda n: Ablation(NOISE, n + 1), 2),
    (
      lambda n: Ablation(NOISE, n + 1, alpha=0.5),
      3,
    ),  # second order; on this problem the leading term of its error cancels
    (lambda n: Ablation(NOISE, n + 1, solver="euler"), 1),
  ],
  ids=["euler", "heun", "ablation heun", "ablation midpoint", "ablation euler"],
)
def test_order(x64, make, order):
  """The error against the exact trajectory falls with the order of the solver."""
  shape, low = (5, 2, 2, 1), jnp.full(5, NOISE.sigma_min)
  start = NOISE.sigma_max * noise(0, shape)
  end = DATA.path(start, jnp.full(5, NOISE.sigma_max), low)

  def error(intervals: int) -> float:
    sampler = make(intervals)
    got = quick_jit(lambda: sampler(DATA.denoise, noise, shape))()
    denoised = isinstance(sampler, Ablation)  # it always ends on a denoise at sigma_min
    return float(jnp.abs(got - (DATA.denoise(end, low) if denoised else end)).max())

  counts = (64, 128, 256)
  errors = [error(n) for n in counts]
  rates = np.log2(np.array(errors[:-1]) / errors[1:])
  assert np.abs(rates - order).max() < 0.15, (errors, rates)


@pytest.mark.slow
def test_dpm2_is_second_order_between_two_levels(x64):
  """To the last level above 0: the step from there to 0 has an error of its own."""
  shape = (5, 2, 2, 1)
  level = lambda sigma: jnp.full(5, sigma)

  def error(intervals: int) -> float:
    sampler = Dpm2(NOISE, intervals + 1)
    levels = sampler.levels()
    seen = []

    def spied(x, sigma):
      jax.debug.callback(lambda x, s: seen.append((float(s[0]), np.asarray(x))), x, sigma)
      return DATA.denoise(x, sigma)

    quick_jit(lambda: sampler(spied, noise, shape))()
    jax.effects_barrier()
    x = min(seen, key=lambda call: abs(call[0] - float(levels[-2])))[1]
    exact = DATA.path(NOISE.sigma_max * noise(0, shape), level(NOISE.sigma_max), level(NOISE.sigma_min))
    return float(jnp.abs(x - exact).max())

  errors = [error(n) for n in (32, 64, 128)]
  rates = np.log2(np.array(errors[:-1]) / errors[1:])
  assert np.abs(rates - 2).max() < 0.2, (errors, rates)


def test_the_ablation_sampler_with_edms_choices_is_heun(x64):
  shape = (3, 2, 2, 1)
  got = quick_jit(lambda: Ablation(NOISE, 18)(DATA.denoise, noise, shape))()
  np.testing.assert_allclose(
    got, quick_jit(lambda: Heun(NOISE, 18)(DATA.denoise, noise, shape))(), rtol=1e-10
  )


def test_churn_of_zero_is_none_and_churn_draws_a_noise_of_its_own_every_step(x64):
  shape = (3, 2, 2, 1)
  run = lambda sampler: np.asarray(quick_jit(lambda: sampler(DATA.denoise, noise, shape))())
  plain = run(Heun(NOISE, 18))
  np.testing.assert_array_equal(run(Heun(NOISE, 18, S_churn=0.0, S_noise=2.0)), plain)
  assert np.abs(run(Heun(NOISE, 18, S_churn=20.0)) - plain).min() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_moves_the_mean_of_gaussian_classes_by_the_scale(x64, scale):
  """D_other + w (D_good - D_other) of one deviation is the denoiser of m_other + w (m_good - m_other)."""
  good, other = Gaussian(0.4, 0.5), Gaussian(-0.1, 0.5)
  shape = (4, 2, 2, 1)
  run = lambda denoise: Heun(NOISE, 12)(denoise, noise, shape)
  got, truth = quick_jit(
    lambda: (
      run(guided(good.denoise, other.denoise, scale)),
      run(Gaussian(-0.1 + scale * 0.5, 0.5).denoise),
    )
  )()
  np.testing.assert_allclose(got, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_descending_levels_that_a_sampler_walks_along(name):
  levels = np.asarray(GRIDS[name](12, NOISE))
  assert levels.shape == (12,) and (np.diff(levels) < 0).all() and (levels > 0).all()
  assert float(GRIDS[name](1, NOISE)[0]) == pytest.approx(float(levels[0]))
  wide = NOISE if name == "karras" else dataclasses.replace(NOISE, sigma_min=1e-4, sigma_max=200.0)
  sampler = Heun(wide, 12, grid=name)
  np.testing.assert_allclose(sampler.sigmas, levels, rtol=1e-6)
  x = quick_jit(lambda: sampler(DATA.denoise, noise, (3, 2, 2, 1)))()
  assert bool(jnp.isfinite(x).all())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("domain", [None, Domain(0.05, 60.0), Domain(0.1, 30.0, (30.0, 12.0, 3.0, 0.8, 0.1))])
def test_no_grid_leaves_what_the_network_accepts(name, domain):
  narrow = dataclasses.replace(NOISE, sigma_min=0.1, sigma_max=25.0)
  low, high = (0.1, 25.0) if domain is None or name == "karras" else domain[:2]
  if domain and domain.levels:
    high = 30.0  # the nearest it knows
  samplers = [Heun(narrow, 7, grid=name, domain=domain)]
  if name != "karras":
    samplers.append(Ablation(narrow, 7, name, domain=domain))
  for sampler in samplers:
    sigmas = np.array(sampler.sigmas)
    assert low * (1 - 1e-6) <= sigmas.min() and sigmas.max() <= high * (1 + 1e-6)
    if domain and domain.levels:
      assert np.isin(sigmas.astype(np.float32), np.float32(domain.levels)).all()
  draws = np.random.default_rng(0).normal(size=(8, 2, 2, 2, 1)).astype(np.float32)
  images = quick_jit(
    lambda draws: [sampler(DATA.denoise, lambda k, shape: draws[k], draws[0].shape) for sampler in samplers]
  )(draws)
  assert all(np.isfinite(image).all() for image in images)


@pytest.mark.parametrize("name", ["vp", "ve", "iddpm"])
def test_a_model_is_sampled_inside_what_its_preconditioning_is_for(name):
  precond = PRECONDS[name](NOISE)
  bound = model_of(Preconditioned(lambda *_, **__: 0, precond), kind="diffusion")
  ours = choose_samplers(bound, num_steps=(6,), name="ablation")[0]
  assert ours.domain == precond.domain
  whole = [make_sampler({"name": "ablation", "discretization": name, "num_steps": 6}, NOISE, precond.domain)]
  assert whole[0].sigmas[0] > 80.0 * (1 - 1e-3)
  (heun,) = choose_samplers(bound, num_steps=(6,))
  if name == "iddpm":
    assert np.isin(np.float32(heun.sigmas), np.float32(precond.levels()[:-1])).all()


def test_the_karras_grid_is_the_default_and_another_name_is_refused():
  assert Heun(NOISE, 5) == Heun(NOISE, 5, grid="karras")
  with pytest.raises(UserError, match="^grid = karas: expected 'karras'"):
    Euler(NOISE, 5, grid="karas")


def test_churn_without_an_upper_end_is_churn_up_to_infinity(x64):
  run = lambda S_max: quick_jit(
    lambda: Heun(NOISE, 8, S_churn=20.0, S_max=S_max)(DATA.denoise, noise, (3, 2, 2, 1))
  )()
  np.testing.assert_array_equal(run(None), run(float("inf")))


def test_the_ablations_solver_may_be_named():
  assert Ablation(NOISE, 5, solver="euler").nfe == 5 and Ablation(NOISE, 5, solver="heun") == Ablation(
    NOISE, 5
  )
  for field, value in (
    ("solver", "rk4"),
    ("schedule", "vq"),
    ("scaling", "ve"),
    ("discretization", "karras"),
  ):
    with pytest.raises(UserError, match=f"^{field} = {value}"):
      Ablation(NOISE, 5, **{field: value})
  for field, value in (("alpha", 0.0), ("epsilon_s", 1.0), ("num_steps", 1)):
    with pytest.raises(UserError, match=f"^{field} = {value}"):
      Ablation(NOISE, **{field: value})


@pytest.mark.slow
def test_a_float64_state_rounds_once_where_float32_rounds_every_step():
  """The network computes in float32 from the same noise; over 300 steps a float32 state drifts."""
  sampler, shape, indices = Heun(NOISE, 300), (4, 4, 4), jnp.arange(16, dtype=jnp.int32)
  types = []

  def bound(params, condition):
    denoise = GaussianPreconditioned()(params)

    def in_float32(x, sigma):
      types.append((x.dtype, sigma.dtype))
      return denoise(x, sigma)

    return in_float32

  model = model_of(bound, shape)
  single = make_generator(model, sampler)(GAUSSIAN, np.uint32(0), indices, None)
  with jax.enable_x64(True):
    double = make_generator(model, sampler, state="float64")(GAUSSIAN, np.uint32(0), indices, None)
  assert set(types) == {(jnp.dtype("float32"), jnp.dtype("float32"))}
  assert single.dtype == double.dtype == jnp.float32
  assert 0 < np.abs(np.asarray(single) - np.asarray(double)).max() < 1e-4


def test_float64_without_its_mode_and_other_types_are_refused():
  model = model_of(GaussianPreconditioned())
  with pytest.raises(UserError, match="^state = float64: expected JAX's x64 mode"):
    make_generator(model, Heun(NOISE, 2), state="float64")
  with pytest.raises(UserError, match="^state = bfloat16"):
    make_generator(model, Heun(NOISE, 2), state="bfloat16")


@pytest.mark.slow
def test_images_are_uint8_and_latents_float32():
  indices = jnp.arange(3, dtype=jnp.int32)
  for channels, dtype in ((1, jnp.uint8), (3, jnp.uint8), (4, jnp.float32), (16, jnp.float32)):
    model = model_of(GaussianPreconditioned(), (4, 4, channels))
    out = make_generator(model, Multistep(NOISE, (80.0,), clip=False))(GAUSSIAN, np.uint32(0), indices, None)
    assert out.dtype == dtype and out.shape == (3, 4, 4, channels)
