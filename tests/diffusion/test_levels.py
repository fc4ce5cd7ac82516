import math

import jax
import numpy as np
import pytest

from cm_jax.diffusion.levels import LEVELS, KarrasLevels, Lognormal, VELevels, VPLevels, lognormal_sigma
from cm_jax.errors import UserError
from cm_jax.types import NoiseRange

NOISE = NoiseRange()
EXAMPLES = {
  "lognormal": Lognormal(-1.1, 2.0),
  "karras": KarrasLevels(NOISE),
  "vp": VPLevels(),
  "ve": VELevels(),
}


def test_lognormal_sigma_has_the_stated_moments():
  log_sigma = np.log(lognormal_sigma(np.random.default_rng(0).normal(size=100_000), -1.1, 2.0))
  # Standard errors: 2 / sqrt(n) = 0.006 of the mean, 0.7 of that of the deviation; five of each.
  assert abs(log_sigma.mean() + 1.1) < 0.032
  assert abs(log_sigma.std() - 2.0) < 0.023


def test_every_entry_is_tested():
  assert {name: type(levels) for name, levels in EXAMPLES.items()} == LEVELS


def cumulative(name: str, sigma: np.ndarray) -> np.ndarray:
  """Return the probability of a level below sigma, by the papers' definitions."""
  if name == "lognormal":
    return np.array([0.5 * (1 + math.erf((math.log(s) + 1.1) / (2 * math.sqrt(2)))) for s in sigma])
  if name == "karras":
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return (sigma ** (1 / 7) - low) / (high - low)
  if name == "ve":
    return np.log(sigma / 0.02) / math.log(100 / 0.02)
  time = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9
  return (time - 1e-5) / (1 - 1e-5)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_levels_follow_their_distribution(name):
  n = 20_000
  sigma = np.sort(np.asarray(EXAMPLES[name](jax.random.key(0), n), np.float64))
  assert sigma.shape == (n,) and np.isfinite(sigma).all() and sigma[0] > 0
  # Kolmogorov and Smirnov: a distance above 1.95 / sqrt(n) has probability 1e-3
  distance = np.abs(cumulative(name, sigma) - (np.arange(n) + 0.5) / n).max()
  assert distance < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_a_level_is_a_function_of_its_draw(name):
  draw = jax.random.normal if name == "lognormal" else jax.random.uniform
  key, levels = jax.random.key(3), EXAMPLES[name]
  np.testing.assert_array_equal(levels(key, 7), levels.at(draw(key, (7,))))


def test_a_deviation_of_0_is_refused():
  with pytest.raises(UserError, match=r"^P_std = 0\.0: expected a number above 0"):
    Lognormal(P_std=0.0)
