"""Compare programs that were timed in turns (`cm_jax.evaluation.timing`), within each round."""

from collections.abc import Sequence

import numpy as np


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
