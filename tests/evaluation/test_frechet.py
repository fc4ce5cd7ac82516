"""The Frechet distance against closed forms and the reference implementations' numbers."""

import numpy as np
import pytest

from cm_jax.evaluation.metrics.frechet import Moments, distance_of_moments, frechet_distance, frechet_floor
from tests import needs

rng = np.random.default_rng(0)


def rotation(size):
  return np.linalg.qr(rng.standard_normal((size, size)))[0]


@pytest.mark.parametrize("zeros", [0, 5])
def test_commuting_covariances(zeros):
  """With common eigenvectors the distance is |dm|^2 + sum (sqrt a - sqrt b)^2; some of the a, b may be 0."""
  basis, a, b, delta = rotation(12), rng.uniform(0.1, 5, 12), rng.uniform(0.1, 5, 12), rng.standard_normal(12)
  a[:zeros], b[2 : 2 + zeros] = 0, 0
  exact = delta @ delta + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
  got = frechet_distance(delta, (basis * a) @ basis.T, np.zeros(12), (basis * b) @ basis.T)
  np.testing.assert_allclose(got, exact, rtol=1e-7)


def test_symmetric_and_zero_for_equal_sets():
  f, g = rng.standard_normal((40, 8)), rng.standard_normal((30, 8)) * 2 + 1
  a, b = Moments.of(f), Moments.of(g)
  np.testing.assert_allclose(distance_of_moments(a, b), distance_of_moments(b, a), rtol=1e-10)
  assert abs(distance_of_moments(a, Moments.of(f[::-1]))) < 1e-10 < distance_of_moments(a, b)


def test_fewer_examples_than_features():
  """Rank-deficient covariances: embedding the features in more dimensions, rotated, changes nothing."""
  f, g, basis = rng.standard_normal((9, 4)), rng.standard_normal((7, 4)) + 1, rotation(30)[:4]
  plain = distance_of_moments(Moments.of(f), Moments.of(g))
  np.testing.assert_allclose(
    distance_of_moments(Moments.of(f @ basis), Moments.of(g @ basis)), plain, rtol=1e-6
  )


def test_moments_of_parts_merge_into_those_of_the_whole():
  """Also far from zero, where sums of squares would cancel."""
  features = (rng.standard_normal((101, 6)) + 1e6).astype(np.float64)
  merged = Moments.of(features[:1])
  for start in range(1, 101, 25):
    merged = merged.merge(Moments.of(features[start : start + 25]))
  assert merged.count == 101 and merged.covariance.dtype == np.float64
  np.testing.assert_allclose(merged.mean, features.mean(0), rtol=1e-14)
  np.testing.assert_allclose(merged.covariance, np.cov(features, rowvar=False), rtol=0, atol=1e-7)


def test_float32_features_are_summed_in_float64():
  features = (rng.standard_normal((5000, 3)) + 300).astype(np.float32)
  np.testing.assert_allclose(
    Moments.of(features).covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10
  )


@needs.numbers
def test_equals_the_reference_implementations():
  golden = np.load(needs.GOLDEN / "F_metrics" / "io.npz")
  parts = [Moments.of(golden[f"in_feat{k}"]) for k in (1, 2)]
  for k, moments in enumerate(parts, 1):
    np.testing.assert_allclose(moments.mean, golden[f"out_mu{k}_f64"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(moments.covariance, golden[f"out_sigma{k}_f64"], rtol=0, atol=1e-9)
  for peer in ("eigh_reference", "edm", "pytorch_fid", "torch_fidelity_f64stats"):
    np.testing.assert_allclose(distance_of_moments(*parts), golden[f"out_fid_{peer}"], rtol=1e-9)


def test_floor_shrinks_with_the_data_and_is_reproducible():
  features = rng.standard_normal((4000, 5))
  many, few = frechet_floor(features), frechet_floor(features[:400])
  assert 0 < many < few / 5 and frechet_floor(features) == many != frechet_floor(features, seed=1)


@pytest.mark.slow
def test_it_is_scipys_square_root_of_the_product():
  """The times are printed (pytest -rP), not tested."""
  import time

  import scipy.linalg

  random, size = np.random.default_rng(4), 2048
  mix = random.normal(size=(size, size)) / np.sqrt(size)
  one, other = (np.abs(random.normal(size=(3000, size)) @ mix) * scale for scale in (1, 1.05))
  a, b = Moments.of(one), Moments.of(other)
  started = time.perf_counter()
  ours = distance_of_moments(a, b)
  middle = time.perf_counter()
  root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
  ended = time.perf_counter()
  delta = a.mean - b.mean
  theirs = delta @ delta + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real
  apart = abs(ours - theirs) / theirs
  print(f"{size} features: ours {middle - started:.2f} s, sqrtm {ended - middle:.2f} s, apart {apart:.1e}")
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
