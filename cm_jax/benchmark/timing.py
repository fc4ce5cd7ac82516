"""Compare programs that were timed in turns (`cm_jax.evaluation.timing`), within each round."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spread:
  """The median of several timings and its quartiles, in seconds."""

  median: float
  low: float
  high: float


def spread(seconds: Sequence[float]) -> Spread:
  """Return median and quartiles.

  >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
  Spread(median=3.0, low=2.0, high=4.0)
  """
  low, median, high = (float(value) for value in np.percentile(seconds, [25, 50, 75]))
  return Spread(median, low, high)


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
  """Return the median over rounds of one program's time over another's.

  >>> ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0])
  2.0
  """
  return float(np.median(np.asarray(seconds) / np.asarray(base)))


def excess(seconds: Sequence[float], base: Sequence[float], unit: Sequence[float]) -> float:
  """Return the median over rounds of (seconds - base)/unit: by how many units one program takes longer.

  >>> excess([5.0, 7.0], [3.0, 5.0], [1.0, 1.0])
  2.0
  """
  return float(np.median((np.asarray(seconds) - np.asarray(base)) / np.asarray(unit)))
