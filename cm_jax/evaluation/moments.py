"""Mean and covariance of features that pass by, in float64; those of parts merge into those of the whole."""

import dataclasses

import numpy as np


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
