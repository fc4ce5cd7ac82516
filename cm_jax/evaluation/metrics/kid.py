"""The kernel distance (KID): unbiased estimates of a squared maximum mean discrepancy, over subsets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import numpy as np

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics.base import Known, Real


class Kernel(Protocol):
  """A positive definite function of two sets of features, [n, D] and [m, D] -> [n, m]."""

  def __call__(self, x: np.ndarray, y: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Polynomial:
  """k(x, y) = (gamma x.y + coef0)^degree, KID's own (Binkowski et al. 2018, section 4).

  Args:
    degree: Of the polynomial, at least 1.
    gamma: Scale of the product; None for 1 / D.
    coef0: Added to it.

  >>> Polynomial()(np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]])).tolist()
  [[15.625]]
  """

  degree: int = 3
  gamma: float | None = None
  coef0: float = 1.0

  def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
    return (gamma * (x @ y.T) + self.coef0) ** self.degree


@dataclasses.dataclass(frozen=True)
class RBF:
  """k(x, y) = exp(-|x - y|^2 / (2 sigma^2)).

  Args:
    sigma: Its width, positive, in units of the features.

  >>> RBF(sigma=1.0)(np.zeros((1, 2)), np.ones((1, 2))).round(4).tolist()
  [[0.3679]]
  """

  sigma: float = 10.0

  def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * (x @ y.T)
    return np.exp(-np.clip(squared, 0, None) / (2 * self.sigma**2))


# By name; what is given is the width of those that have one.
KERNELS: Mapping[str, Callable[[float], Kernel]] = {"polynomial": lambda _: Polynomial(), "rbf": RBF}


@dataclasses.dataclass(frozen=True)
class KID:
  """The mean of `kernel_distances`, and their deviation (Binkowski et al. 2018).

  Args:
    kernel: A key of `KERNELS`; torch-fidelity's have these parameters.
    kernel_width: Of "rbf", in units of the features.
    subsets, subset_size: Of `kernel_distances`.
    metric_seed: Its seed.
  """

  kernel: str = "polynomial"
  kernel_width: float = 10.0
  subsets: int = 100
  subset_size: int = 1000
  metric_seed: int = 2020

  records: ClassVar[Mapping[str, str]] = {"kid": "kid_{data}", "kid_std": "kid_std_{data}"}
  baseline: ClassVar[str] = ""
  needs: ClassVar[tuple[str, ...]] = ("features",)
  needs_real: ClassVar[tuple[str, ...]] = ("features",)
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ()
  columns: ClassVar[Mapping[str, str]] = {"KID-{data}": "{kid:.3e} ± {kid_std:.1e}"}
  about: ClassVar[str] = "KID-{data}: unbiased squared MMD of subsets, mean and deviation; 0 is equal."

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    features = samples.features, real.collected.features
    kernel = KERNELS[self.kernel](self.kernel_width)
    found = kernel_distances(*features, kernel, self.subsets, self.subset_size, self.metric_seed)
    return {"kid": float(found.mean()), "kid_std": float(found.std())}

  def of_real(self, real: Real) -> None:
    """Return None: it is 0 on average, by its construction."""


def unbiased_mmd2(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
  """Return the unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3): 0 on average for equal distributions.

  sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean_{ij} k(x_i, y_j)

  Args:
    x, y: Features, [n, D] and [m, D], n, m >= 2.
    kernel: Of two sets.

  >>> unbiased_mmd2(np.array([[0.0], [2.0]]), np.array([[0.0], [2.0]]), Polynomial(degree=1))
  -2.0
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

  def within(a: np.ndarray) -> float:
    values = kernel(a, a)
    return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

  return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distances(
  samples: np.ndarray, real: np.ndarray, kernel: Kernel, subsets: int, subset_size: int, seed: int
) -> np.ndarray:
  """Return MMD^2 of random subsets, float64 [subsets]: KID is their mean, and its spread their deviation.

  The subsets are torch-fidelity's: drawn without replacement, in turns of the samples and of the real images,
  by numpy's RandomState.

  Args:
    samples, real: Features, [N, D] and [M, D].
    kernel: Of two sets.
    subsets: How many, at least 1.
    subset_size: Images in each, at least 2 and at most the smaller of N and M.
    seed: Of the draws, 0 to 2^32 - 1.

  Raises:
    UserError: Subsets larger than what there is.
  """
  smaller = min(len(samples), len(real))
  if subset_size > smaller:
    raise UserError("subset_size", subset_size, f"at most {smaller}, the images there are, or more images")
  draws = subset_indices(len(samples), len(real), subsets, subset_size, seed)
  return np.array(
    [unbiased_mmd2(samples[one], real[other], kernel) for one, other in zip(*draws, strict=True)]
  )


def subset_indices(
  num_samples: int, num_real: int, subsets: int, subset_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return which images the subsets of `kernel_distances` hold, two int [subsets, subset_size]."""
  random = np.random.RandomState(seed)
  sizes = (num_samples, num_real)
  drawn = [[random.choice(size, subset_size, replace=False) for size in sizes] for _ in range(subsets)]
  return np.stack([pair[0] for pair in drawn]), np.stack([pair[1] for pair in drawn])
