"""The Frechet distance between two sets of features, in float64 on the host."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cm_jax.data.pipeline import epoch_order
from cm_jax.evaluation.metrics.base import Samples
from cm_jax.evaluation.real import RealData


@dataclasses.dataclass(frozen=True)
class Frechet:
  """The Frechet distance to the reference; never called FID, which is a distance in Inception's features.

  Args:
    repeats: Random splits of the reference into halves, for the distance it has to itself.
  """

  repeats: int = 20

  record: ClassVar[str] = "fd_{data}"
  baseline: ClassVar[str] = "floor"
  columns: ClassVar[Mapping[str, str]] = {"FD-{data}": "{fd:.3f}", "floor": "{fd_floor:.3f}"}
  about: ClassVar[str] = (
    "FD-{data}: Frechet distance in the features of a small classifier trained with a fixed seed, scaled so "
    "that the data's trace(cov) is their number; n samples against all real images. It compares the rows "
    "of this table and nothing else. floor: the same between random halves of the real images."
  )

  def value(self, samples: Samples, real: RealData) -> float:
    """Return it of samples."""
    return distance_of_moments(Moments.of(samples.features), Moments.of(real.reference_features))

  def of_real(self, real: RealData) -> tuple[float, int]:
    """Return the floor, and the size of a half."""
    return frechet_floor(real.reference_features, self.repeats), len(real.reference_features) // 2


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """Mean and covariance of features seen so far; moments of parts merge into those of the whole.

  Args:
    count: Examples seen.
    mean: float64 [D].
    scatter: float64 [D, D], the sum of (f - mean)(f - mean)^T.

  >>> parts = Moments.of(np.array([[0.0], [2.0]])).merge(Moments.of(np.array([[4.0]])))
  >>> parts.count, parts.mean.tolist(), parts.covariance.tolist()
  (3, [2.0], [[4.0]])
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> "Moments":
    """Take the moments of features [N, D], N >= 1, of any float type."""
    wide = np.asarray(features, np.float64)
    mean = wide.mean(0)
    centred = wide - mean[None]
    return cls(len(wide), mean, centred.T @ centred)

  def merge(self, other: "Moments") -> "Moments":
    """Return the moments of both sets (Chan, Golub, LeVeque 1979: no difference of large numbers)."""
    count = self.count + other.count
    delta = other.mean - self.mean
    scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count)
    return Moments(count, self.mean + delta * (other.count / count), scatter)

  @property
  def covariance(self) -> np.ndarray:
    """Unbiased (N - 1), as in every public implementation: float64 [D, D]; N >= 2."""
    return self.scatter / (self.count - 1)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
  """Return the Frechet distance of two Gaussians: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

  Heusel et al. 2017, eq. 6 with the square root in its symmetric form: real eigenvalues only, and
  rank-deficient covariances (fewer examples than features) need no special case.

  Args:
    mu1, mu2: Means, [D].
    sigma1, sigma2: Covariances, [D, D], symmetric, positive semi-definite.

  >>> frechet_distance(np.zeros(2), np.eye(2), np.array([3.0, 4.0]), 4 * np.eye(2))
  27.0
  """
  mu1, sigma1, mu2, sigma2 = (np.asarray(value, np.float64) for value in (mu1, sigma1, mu2, sigma2))
  values, vectors = np.linalg.eigh(sigma1)
  root = (vectors * np.sqrt(np.clip(values, 0, None))[None]) @ vectors.T
  product = root @ sigma2 @ root
  cross = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
  delta = mu1 - mu2
  return float(delta @ delta + np.trace(sigma1) + np.trace(sigma2) - 2 * cross)


def distance_of_moments(a: Moments, b: Moments) -> float:
  """Return `frechet_distance` of two sets of features given by their moments."""
  return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def frechet_floor(features: np.ndarray, repeats: int = 20, seed: int = 0) -> float:
  """Return the distance that real data has to itself: the mean over random splits of it into halves.

  It is what sampling error alone costs at half the data's size; a generator compared with all of it may well
  score lower.

  Args:
    features: [N, D] of the real data, N >= 4.
    repeats: Splits, >= 1.
    seed: Of the splits; >= 0.
  """
  half = len(features) // 2
  distances = []
  for repeat in range(repeats):
    order = epoch_order(len(features), seed, repeat)
    distances.append(
      distance_of_moments(Moments.of(features[order[:half]]), Moments.of(features[order[half:]]))
    )
  return float(np.mean(distances))
