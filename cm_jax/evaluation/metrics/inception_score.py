"""The Inception Score: are single images recognised, and is all of them together varied?"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics.base import Known, Real


@dataclasses.dataclass(frozen=True)
class InceptionScore:
  """The mean of `inception_scores`, and their deviation; larger is better.

  Args:
    splits, shuffle: Of `inception_scores`.
    metric_seed: Its seed.
  """

  splits: int = 10
  shuffle: bool = False
  metric_seed: int = 2020

  records: ClassVar[Mapping[str, str]] = {"is": "is", "is_std": "is_std"}
  baseline: ClassVar[str] = ""
  needs: ClassVar[tuple[str, ...]] = ("logits",)
  needs_real: ClassVar[tuple[str, ...]] = ()
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ("inception",)
  columns: ClassVar[Mapping[str, str]] = {"IS": "{is:.2f} ± {is_std:.2f}"}
  about: ClassVar[str] = "IS: Inception Score, mean and deviation over splits; larger is better."

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    found = inception_scores(samples.logits, self.splits, self.shuffle, self.metric_seed)
    return {"is": float(found.mean()), "is_std": float(found.std())}

  def of_real(self, real: Real) -> None:
    """Return None: nothing is measured of real images."""


def inception_scores(
  logits: np.ndarray, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> np.ndarray:
  """Return exp(mean_i KL(p(y|x_i) || p(y))) of every split (Salimans et al. 2016), float64 [splits].

  The score is their mean, and its spread their (population) deviation. Splits and order are torch-fidelity's.
  ADM's evaluator takes parts of 5,000 images as they come: of 50,000 images the same 10.

  Args:
    logits: [N, classes] of the samples, without the last layer's bias where they are Inception's
      (torch-fidelity's "logits_unbiased").
    splits: Parts, of N // splits images or one more; 1 to N.
    shuffle: Draw the images in an order of RandomState(seed); else as they come, which is another score where
      they come sorted by class.
    seed: Of the order, 0 to 2^32 - 1.

  Raises:
    UserError: More splits than images.

  >>> inception_scores(np.array([[50.0, 0.0], [0.0, 50.0]]), splits=1).round(6).tolist()
  [2.0]
  """
  count = len(logits)
  if not 1 <= splits <= count:
    raise UserError("splits", splits, f"1 to {count}, the number of images")
  wide = np.asarray(logits, np.float64)
  if shuffle:
    wide = wide[np.random.RandomState(seed).permutation(count)]
  log_p = wide - wide.max(1, keepdims=True)
  log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
  bounds = [i * count // splits for i in range(splits + 1)]
  return np.array([_score(log_p[low:high]) for low, high in itertools.pairwise(bounds)])


def _score(log_p: np.ndarray) -> float:
  p = np.exp(log_p)
  marginal = p.mean(0, keepdims=True)
  log_marginal = np.log(
    np.where(marginal > 0, marginal, 1)
  )  # a class that underflows in every row adds nothing
  return float(np.exp((p * (log_p - log_marginal)).sum(1).mean()))
