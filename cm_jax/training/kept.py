"""Which checkpoints are kept when newer ones are written."""

from collections.abc import Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers


class Exactly:
  """Keeps the checkpoint of a step, which may move.

  Attributes:
    step: None keeps none.
  """

  step: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Say of each checkpoint whether this policy keeps it."""
    return [checkpoint.step == self.step for checkpoint in checkpoints]


class NewestUntil:
  """Keeps the newest checkpoint up to a step, which may move.

  Attributes:
    step: None keeps none.
  """

  step: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Say of each checkpoint whether this policy keeps it."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    good = max((step for step in steps if self.step is not None and step <= self.step), default=None)
    return [step == good for step in steps]


def kept(keep: int, keep_every: int, keep_steps: Sequence[int], *moving: NewestUntil | Exactly) -> Any:
  """Return Orbax's policy: the newest `keep`, one each `keep_every` steps, `keep_steps`, what is `moving`."""
  policies: list[Any] = [checkpoint_managers.LatestN(keep), *moving]
  if keep_every:
    policies.append(checkpoint_managers.EveryNSteps(keep_every))
  if keep_steps:
    policies.append(checkpoint_managers.CustomSteps(list(keep_steps)))
  return checkpoint_managers.AnyPreservationPolicy(policies)
