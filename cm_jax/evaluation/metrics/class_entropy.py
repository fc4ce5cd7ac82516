"""Does a model make every class?"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cm_jax.evaluation.metrics.base import Known, Real


@dataclasses.dataclass(frozen=True)
class ClassEntropy:
  """The entropy of the predicted classes, over its maximum."""

  records: ClassVar[Mapping[str, str]] = {"class_entropy": "class_entropy"}
  baseline: ClassVar[str] = ""
  needs: ClassVar[tuple[str, ...]] = ("logits",)
  needs_real: ClassVar[tuple[str, ...]] = ()
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ()
  columns: ClassVar[Mapping[str, str]] = {"class entropy": "{class_entropy:.3f}"}
  about: ClassVar[str] = "class entropy: of the predicted classes, 1 is the maximum."

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    return {"class_entropy": class_entropy(samples.logits)}

  def of_real(self, real: Real) -> None:
    """Return None: nothing is measured of real images."""


def class_entropy(logits: np.ndarray) -> float:
  """Return the entropy of the predicted classes' histogram over its maximum, log(classes).

  1 if all come equally often, 0 if only one does.

  Args:
    logits: [N, classes], N >= 1, at least 2 classes.

  >>> class_entropy(np.eye(4)), class_entropy(np.eye(4)[:2]), class_entropy(np.eye(4)[:1])
  (1.0, 0.5, 0.0)
  """
  classes = logits.shape[1]
  share = np.bincount(np.argmax(logits, 1), minlength=classes) / len(logits)
  share = share[share > 0]
  return float(np.abs((share * np.log(share)).sum()) / np.log(classes))
