"""Precision, recall, density, coverage: exactly what brute force in float64 says, ties too."""

import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation.collecting import Collected
from cm_jax.evaluation.metrics import neighbours
from cm_jax.evaluation.metrics.neighbours import PrecisionRecall, prdc, squared_radii
from cm_jax.evaluation.real import RealData


def brute(samples, real, k):
  between = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(2)
  r, s = (np.sort(between(x, x), 1)[:, k] for x in (real, samples))
  d = between(samples, real)
  inside = d <= r[None]
  return inside.any(1).mean(), (d <= s[:, None]).any(0).mean(), inside.sum(1).mean() / k, inside.any(0).mean()


@pytest.mark.parametrize("k", [1, 4, 11])
@pytest.mark.parametrize("kind", ["lattice", "normal", "far from zero", "copies"])
def test_the_verdict_is_that_of_brute_force(kind, k):
  random = np.random.default_rng(k)
  samples, real = random.normal(size=(60, 3)), random.normal(size=(55, 3)) * 0.8
  if kind == "lattice":  # of 0.1, that no float holds: most distances come many times
    samples, real = random.integers(0, 4, (60, 3)) * 0.1, random.integers(0, 4, (55, 3)) * 0.1
  if kind == "far from zero":
    samples, real = samples + 1e6, real + 1e6
  if kind == "copies":
    samples[:30] = real[:30]
    samples[30:50] = samples[30]
  np.testing.assert_allclose(prdc(samples, real, k, block=17), brute(samples, real, k), atol=1e-14)


def test_a_set_against_itself_and_against_one_far_away():
  features = np.random.default_rng(0).normal(size=(40, 5))
  assert prdc(features, features)[:2] == (1, 1) and prdc(features, features).coverage == 1
  apart = prdc(features + 100, features)
  assert apart == (0, 0, 0, 0) and apart.f_score == 0


def test_modes_that_are_not_made_cost_recall_and_coverage_alone():
  random = np.random.default_rng(1)
  real = np.concatenate([random.normal(size=(100, 2)), random.normal(size=(100, 2)) + 50])
  found = prdc(random.normal(size=(200, 2)), real, neighbours=5)
  assert found.precision > 0.9 and 0.8 < found.density < 1.2 * 2
  assert 0.4 < found.recall <= 0.5 and 0.4 < found.coverage <= 0.5


def test_float32_features_and_any_block_are_the_same():
  features = np.random.default_rng(5).normal(size=(33, 4)).astype(np.float32)
  np.testing.assert_array_equal(
    squared_radii(features.astype(np.float64), 2, 7), squared_radii(features.astype(np.float64), 2)
  )
  assert prdc(features[:20], features[13:], 2, block=6) == prdc(
    features[:20].astype(np.float64), features[13:], 2
  )


@pytest.mark.parametrize("count", [12, 63, 64, 65, 700])
@pytest.mark.parametrize("kind", ["apart", "sorted", "copies"])
def test_neighbours_are_found_wherever_they_lie(kind, count):
  random = np.random.default_rng(count)
  features = random.normal(size=(count, 3))
  if kind == "sorted":  # all neighbours of a row side by side
    features = features[np.argsort(features[:, 0])] * [10, 1e-3, 1e-3]
  if kind == "copies":
    features = features[random.integers(0, count // 4, count)]
  squared = ((features[:, None] - features[None]) ** 2).sum(2)
  for k in (1, 5, 10):
    np.testing.assert_allclose(squared_radii(features, k, 50), np.sort(squared, 1)[:, k], rtol=1e-12)


def test_balls_of_the_reference_are_measured_once_for_all_samples(monkeypatch):
  random = np.random.default_rng(3)
  real = RealData(None, None, None, None, None, frozenset())
  monkeypatch.setitem(
    real.__dict__, "collected", Collected(30, {}, {"features": (random.normal(size=(30, 4)),)})
  )
  metric, sets = (
    PrecisionRecall(4),
    [Collected(20, {}, {"features": (random.normal(size=(20, 4)),)}) for _ in "ab"],
  )
  measured = []
  monkeypatch.setattr(
    neighbours,
    "squared_radii",
    lambda features, *rest: measured.append(len(features)) or squared_radii(features, *rest),
  )
  found = [metric.values(samples, real) for samples in sets]
  assert measured == [30, 20, 20]
  assert found == [prdc(samples.features, real.collected.features, 4)._asdict() for samples in sets]
  assert (
    PrecisionRecall(2).values(sets[0], real) == prdc(sets[0].features, real.collected.features, 2)._asdict()
  )


@pytest.mark.parametrize("k", [0, 10])
def test_no_more_images_than_neighbours_is_refused(k):
  with pytest.raises(UserError, match=f"neighbours.*{k}.*1 to 9"):
    prdc(np.zeros((10, 2)), np.zeros((20, 2)), k)
