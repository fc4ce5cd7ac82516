"""Does a model make anything but copies of the training set?"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cm_jax.evaluation.metrics.base import Known, Real


@dataclasses.dataclass(frozen=True)
class NearestNeighbour:
  """The mean distance to the nearest training image; of real images, that of those held out."""

  records: ClassVar[Mapping[str, str]] = {"nn_distance": "nn_distance"}
  baseline: ClassVar[str] = "real"
  needs: ClassVar[tuple[str, ...]] = ("images",)
  needs_real: ClassVar[tuple[str, ...]] = ("train",)
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ()
  columns: ClassVar[Mapping[str, str]] = {"NN (real)": "{nn_distance:.2f} ({nn_distance_real:.2f})"}
  about: ClassVar[str] = (
    "NN: mean distance to the nearest training image in [-1, 1] pixels, and in brackets that of real images "
    "outside the training set: much below it would be copying."
  )

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    assert real.train is not None  # it is needed
    return {"nn_distance": nearest_neighbour_distance(samples.images, real.train)}

  def of_real(self, real: Real) -> tuple[float, int] | None:
    """Return it of the held-out images, and their number."""
    if real.held_out is None or real.train is None:
      return None
    return nearest_neighbour_distance(real.held_out, real.train), len(real.held_out)


def nearest_neighbour_distance(samples: np.ndarray, train: np.ndarray, block: int = 1024) -> float:
  """Return the mean L2 distance, in [-1, 1] pixels, from each sample to the training image nearest to it.

  Compare it with that of real images outside the training set: much lower means memorised. Exact: the squared
  distances are sums of whole numbers below 2^53.

  Args:
    samples: uint8 [N, H, W, C], N >= 1.
    train: uint8 [M, H, W, C], M >= 1.
    block: Samples compared at a time; memory is block * M * 8 bytes.

  >>> train = np.zeros((1, 2, 2, 1), np.uint8)
  >>> nearest_neighbour_distance(train + np.uint8([[[[0]]], [[[255]]]]), train)
  2.0
  """
  known = train.reshape(len(train), -1).astype(np.float64)
  known_norm = (known * known).sum(1)
  total = 0.0
  for start in range(0, len(samples), block):
    x = samples[start : start + block].reshape(-1, known.shape[1]).astype(np.float64)
    squared = (x * x).sum(1)[:, None] + known_norm[None] - 2 * (x @ known.T)
    total += float(np.sqrt(squared.min(1)).sum())
  return total / len(samples) / 127.5
