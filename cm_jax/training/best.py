"""The best checkpoint of a run: by a metric of samples that is measured while it trains, in metrics.jsonl."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Criterion:
  """What checkpoints are compared by.

  Args:
    name: Of a value in metrics.jsonl.
    larger_is_better: Else the smallest is the best.
  """

  name: str
  larger_is_better: bool = False

  def prefers(self, value: Any, other: float | None) -> bool:
    """Whether a value is better than another; what is no finite number never is, and anything is than None.

    >>> Criterion("fd").prefers(2.0, 3.0), Criterion("is", True).prefers(2.0, 3.0)
    (True, False)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
      return False
    return other is None or (value > other if self.larger_is_better else value < other)


@dataclasses.dataclass(frozen=True)
class Best:
  """The best so far.

  Attributes:
    step: After which it is.
    value: What was measured of it.
  """

  step: int
  value: float


def best_of(
  rows: Iterable[Mapping[str, Any] | None], steps: Collection[int], criterion: Criterion
) -> Best | None:
  """Return the best of the checkpoints that were measured, the first of equals; None if none was.

  Args:
    rows: Of metrics.jsonl, None for damaged ones.
    steps: That have a checkpoint.
    criterion: What they are compared by.

  >>> rows = [{"step": 2, "fd": 3.0}, {"step": 4, "fd": 1.0}, None, {"step": 8, "fd": 2.0}]
  >>> best_of(rows, (2, 6, 8), Criterion("fd"))
  Best(step=8, value=2.0)
  """
  best: Best | None = None
  for row in rows:
    if row is None or row["step"] not in steps:
      continue
    value = row.get(criterion.name)
    if criterion.prefers(value, None if best is None else best.value):
      best = Best(row["step"], float(row[criterion.name]))
  return best
