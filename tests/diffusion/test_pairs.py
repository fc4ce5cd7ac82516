import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import Curriculum, constant, stages
from cm_jax.diffusion.grids import karras_grid
from cm_jax.diffusion.pairs import ContinuousPairs, KarrasPairs, LognormalPairs
from cm_jax.errors import UserError
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.golden_cases import BOTH_PRECISIONS, assert_golden, golden_case

NOISE = NoiseRange()
DRAWS = 100_000
# Two grids, changed by the step alone.
TWO_GRIDS = Curriculum(starts=(0, 100), values=(11, 41))


def chi_square_limit(categories: int) -> float:
  """Return the 1 - 1e-5 quantile of chi-square of categories - 1 degrees of freedom (Wilson, Hilferty)."""
  k = categories - 1
  return k * (1 - 2 / (9 * k) + 4.265 * math.sqrt(2 / (9 * k))) ** 3


def chi_square(counts: np.ndarray, probability: np.ndarray) -> tuple[float, int]:
  """Return the statistic and its number of categories; rare categories count as one."""
  rare = probability * counts.sum() < 10
  pooled = lambda values: np.append(values[~rare], values[rare].sum()) if rare.any() else values
  counts, expected = pooled(counts), pooled(probability) * counts.sum()
  return float(((counts - expected) ** 2 / expected).sum()), len(counts)


def count_intervals(t: np.ndarray, r: np.ndarray, grid: np.ndarray) -> np.ndarray:
  """Return how often each interval of a decreasing grid was drawn; every pair must be the two ends of one."""
  index = np.abs(np.log(t)[:, None] - np.log(grid)[None]).argmin(axis=1)
  np.testing.assert_allclose(t, grid[index], rtol=5e-6)
  np.testing.assert_allclose(r, grid[index + 1], rtol=5e-6)
  return np.bincount(index, minlength=len(grid) - 1)


def interval_mass(grid: np.ndarray, P_mean: float, P_std: float) -> np.ndarray:
  """Return p(i) of iCT for a decreasing grid, by the error function in float64."""
  cdf = [math.erf((math.log(sigma) - P_mean) / (math.sqrt(2) * P_std)) for sigma in grid.astype(np.float64)]
  mass = -np.diff(cdf)
  return mass / mass.sum()


@pytest.mark.parametrize("kind", ["uniform", "lognormal"])
def test_grid_pairs_are_adjacent_and_follow_their_distribution_for_every_n_in_one_trace(kind):
  pairs = (
    KarrasPairs(NOISE, TWO_GRIDS)
    if kind == "uniform"
    else LognormalPairs(NOISE, TWO_GRIDS, P_mean=-1.1, P_std=2.0)
  )
  traces = []

  @quick_jit
  def draw(key, step):
    traces.append(step)
    return pairs(key, DRAWS, step)

  for step, n in zip((7, 180), TWO_GRIDS.values, strict=True):
    grid = np.asarray(karras_grid(n, NOISE))
    counts = count_intervals(*map(np.asarray, draw(jax.random.key(step), step)), grid)
    probability = np.full(n - 1, 1 / (n - 1)) if kind == "uniform" else interval_mass(grid, -1.1, 2.0)
    statistic, categories = chi_square(counts, probability)
    assert categories > n // 2
    assert statistic < chi_square_limit(categories), (n, statistic)
    assert int(pairs.metrics(jnp.asarray(step))["num_scales"]) == n
  assert len(traces) == 1


def test_the_chi_square_test_tells_the_distributions_apart():
  grid = np.asarray(karras_grid(11, NOISE))
  t, r = map(np.asarray, KarrasPairs(NOISE, constant(11))(jax.random.key(0), DRAWS, jnp.zeros([], jnp.int32)))
  statistic, categories = chi_square(count_intervals(t, r, grid), interval_mass(grid, -1.1, 2.0))
  assert statistic > 10 * chi_square_limit(categories)


def test_the_finest_grid_of_ict_still_has_distinct_neighbours():
  t, r = LognormalPairs(NOISE, constant(1281))(jax.random.key(0), DRAWS, jnp.zeros([], jnp.int32))
  assert bool((t > r).all()) and float(r.min()) >= np.float32(NOISE.sigma_min) and float(t.max()) <= 80.0
  assert float((1 / (t - r)).max()) < 3e4  # the finest gap is 3.9e-5


@BOTH_PRECISIONS
def test_ects_target_time_is_ects(double):
  case = golden_case("E_ect_loss")
  names = [name for name in case.outputs() if name.startswith("tab_")]
  assert names
  with jax.enable_x64(double):
    t = jnp.asarray(case.input("t_grid"), jnp.result_type(float))
    for name in names:
      _, adjustment, q = name.split("_")
      pairs = ContinuousPairs(
        stages(1, 8), q=float(q[1:]), adjustment={"const": "constant"}.get(adjustment, adjustment)
      )
      # The peer's first row is before its first stage, where it takes the same formula as in stage 0.
      by_stage = [pairs.target_time(t, 0), *(pairs.target_time(t, stage) for stage in range(8))]
      assert_golden(case, name, jnp.stack(by_stage))


@pytest.mark.parametrize(
  ("q", "stage", "edge"), [(2.0, 0, math.log(7)), (2.0, 1, math.log(5 / 3)), (4.0, 0, math.log(5 / 3))]
)
def test_the_target_is_the_clean_end_up_to_the_stated_noise_level(q, stage, edge):
  r = ContinuousPairs(stages(1, 8), q=q).target_time(
    jnp.array([1e-4, 0.01, edge - 1e-3, edge + 1e-3, 80.0]), stage
  )
  assert (np.asarray(r) > 0).tolist() == [False, False, False, True, True]
  assert float(r.min()) == 0.0


def test_later_stages_never_fall_back_on_the_clean_end():
  t = jnp.geomspace(1e-5, 80.0, 200)
  for q, stage in ((2.0, 3), (4.0, 1), (256.0, 0)):
    assert bool((ContinuousPairs(stages(1, 8), q=q).target_time(t, stage) > 0).all())


def test_continuous_pairs_follow_the_stage_without_recompiling():
  pairs = ContinuousPairs(stages(100, 3), P_mean=0.5, P_std=1.0, q=2.0)
  traces = []

  @quick_jit
  def draw(key, step):
    traces.append(step)
    return pairs(key, 1_000, step)

  for step, stage in ((0, 0), (99, 0), (100, 1), (250, 2), (10**6, 2)):
    t, r = draw(jax.random.key(1), step)
    np.testing.assert_allclose(r, pairs.target_time(t, stage), rtol=1e-6, atol=1e-6)
    assert int(pairs.metrics(jnp.asarray(step))["stage"]) == stage
  log_t = np.log(t)
  assert abs(log_t.mean() - 0.5) < 5 / math.sqrt(1_000) and abs(log_t.std() - 1) < 5 / math.sqrt(2_000)
  assert len(traces) == 1


@pytest.mark.parametrize(
  ("field", "make"),
  [
    ("scales", lambda: KarrasPairs(NOISE, constant(1))),
    ("scales", lambda: LognormalPairs(NOISE, constant(1))),
    ("P_std", lambda: LognormalPairs(NOISE, constant(2), P_std=0.0)),
    ("q", lambda: ContinuousPairs(stages(1, 1), q=1.0)),
    ("P_std", lambda: ContinuousPairs(stages(1, 1), P_std=-1.0)),
    ("adjustment", lambda: ContinuousPairs(stages(1, 1), adjustment="const")),
  ],
)
def test_bad_options_are_refused(field, make):
  with pytest.raises(UserError) as refused:
    make()
  assert refused.value.field == field


def test_only_pairs_of_a_grid_have_scales():
  assert KarrasPairs(NOISE, TWO_GRIDS).scales is LognormalPairs(NOISE, TWO_GRIDS).scales is TWO_GRIDS
  assert ContinuousPairs(stages(100, 3)).scales is None
