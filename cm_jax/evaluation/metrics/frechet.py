"""The Frechet distance between two sets of features, in float64 on the host."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cm_jax.data.pipeline import epoch_order
from cm_jax.evaluation.metrics.base import Known, Real
from cm_jax.evaluation.moments import Moments


@dataclasses.dataclass(frozen=True)
class Frechet:
  """The Frechet distance to the reference; never called FID, which is a distance in Inception's features.

  Args:
    repeats: Random splits of the reference into halves, for the distance it has to itself.
  """

  repeats: int = 20

  records: ClassVar[Mapping[str, str]] = {"fd": "fd_{data}"}
  baseline: ClassVar[str] = "floor"
  needs: ClassVar[tuple[str, ...]] = ("moments",)
  needs_real: ClassVar[tuple[str, ...]] = ("moments",)
  needs_baseline: ClassVar[tuple[str, ...]] = ("features",)
  only: ClassVar[tuple[str, ...]] = ()
  columns: ClassVar[Mapping[str, str]] = {"FD-{data}": "{fd:.3f}", "floor": "{fd_floor:.3f}"}
  about: ClassVar[str] = (
    "FD-{data}: Frechet distance in the features of a small classifier trained with a fixed seed, scaled so "
    "that the data's trace(cov) is their number; n samples against all real images. It compares the rows "
    "of this table and nothing else. floor: the same between random halves of the real images."
  )

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    return {"fd": distance_of_moments(samples.moments["moments"], real.collected.moments["moments"])}

  def of_real(self, real: Real) -> tuple[float, int]:
    """Return the floor, and the size of a half."""
    features = real.collected.features
    return frechet_floor(features, self.repeats), len(features) // 2


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
