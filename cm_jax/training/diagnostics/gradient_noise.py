"""How noisy a gradient is: the batch size at which its noise is as large as the gradient itself (McCandlish
et al. 2018)."""

import math
from typing import NamedTuple


class GradientNoise(NamedTuple):
  """How much the gradient of a batch varies.

  Attributes:
    norm_squared: |G|^2 of the expected gradient G; an unbiased estimate, which can be negative where noise
      dominates.
    trace: tr(Sigma), Sigma the covariance of one example's gradient (its noise level, noise and dropout
      included); unbiased.
    b_simple: Their ratio, the batch size at which noise and signal are equal; nan where norm_squared <= 0. To
      average over measurements, average the other two first.
  """

  norm_squared: float
  trace: float
  b_simple: float


def gradient_noise(small: float, big: float, small_size: int, big_size: int) -> GradientNoise:
  """Estimate a gradient's noise from its squared norm at two batch sizes (McCandlish et al.
  2018, appendix A.1).

  E|G_B|^2 = |G|^2 + tr(Sigma)/B, solved for the two.

  Args:
    small, big: Mean squared norms of the gradients of batches of `small_size` and of `big_size` examples.

  >>> gradient_noise(3.0, 1.5, 1, 4)
  GradientNoise(norm_squared=1.0, trace=2.0, b_simple=2.0)
  """
  norm_squared = (big_size * big - small_size * small) / (big_size - small_size)
  trace = (small - big) / (1 / small_size - 1 / big_size)
  return GradientNoise(norm_squared, trace, trace / norm_squared if norm_squared > 0 else math.nan)
