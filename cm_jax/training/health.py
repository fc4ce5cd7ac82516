"""What goes wrong in training without stopping it: skipped steps, a loss that grew; said as it comes and at
the end."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from cm_jax.notices import notice

GREW = 1000.0  # times its best: no curriculum does that
GOOD = 10.0  # times its best: weights from before that are worth keeping
SKIPPED = 0.01  # of all steps: more is a fault of the data or of the learning rate, and not chance
_CAUSES = "(look for NaN in the data, or try a lower learning rate)"


@dataclasses.dataclass
class Health:
  """Watches the scalars of log steps.

  Attributes:
    kept: Given a step, returns the newest checkpoint up to it; None if there is none.
    loss: The last that was a number.
    best: The least so far.
    largest: The largest until `good`, in absolute value.
    growth: How much worse than the best the loss is, in multiples of the best.
    good: The last step at which the loss was near its best; 0 before.
    skipped: Steps so far that were not finite.

  >>> health = Health()
  >>> for step, loss in ((10, 2.0), (20, 0.5), (30, 499.0), (40, math.inf)):
  ...   health.see(step, {"loss": loss})
  >>> health.good, health.growth
  (20, 997.0)
  """

  kept: Callable[[int], int | None] = lambda step: None
  loss: float = math.nan
  best: float = math.inf
  largest: float = 0.0
  growth: float = 0.0
  good: int = 0
  skipped: int = 0
  _said: set[str] = dataclasses.field(default_factory=set)

  def see(self, step: int, scalars: Mapping[str, Any], quiet: bool = False) -> None:
    """Take the scalars of a log step: `loss`, and `nonfinite_total`; what is no finite number is passed over.

    Args:
      step: Steps so far.
      scalars: Of the steps since the last log step.
      quiet: Say nothing: an earlier process did.
    """
    if _is_finite(scalars.get("loss")):
      self._see_loss(step, float(scalars["loss"]))
    if _is_finite(scalars.get("nonfinite_total")):
      self.skipped = int(scalars["nonfinite_total"])
    if quiet:
      return
    if self.skipped > max(SKIPPED * step, 2):
      self._say("skipped", f"{self._of(step)} so far {_CAUSES}")
    if self.growth > GREW:
      self._say("grew", f"step {step}: {self._grown()}: training may have diverged")

  def end(self, step: int) -> None:
    """Say what was wrong with the whole, after the last step."""
    if self.skipped:
      notice(f"{self._of(step)} {_CAUSES}")
    if self.growth > GREW:
      kept = self.kept(self.good)
      from_before = "no checkpoint is from before" if kept is None else f"checkpoint {kept} is from before"
      notice(f"step {step}, the last: {self._grown()}: training has diverged; {from_before}")

  def _see_loss(self, step: int, loss: float) -> None:
    self.loss, self.best = loss, min(self.best, loss)
    # The best may be 0 or less, where a weighting is learned: then how much there was to lose is the measure.
    scale = self.best if self.best > 0 else max(self.largest, abs(self.best))
    self.growth = (loss - self.best) / scale if scale > 0 else 0.0
    if self.growth <= GOOD:
      self.good, self.largest = step, max(self.largest, abs(loss))

  def _say(self, kind: str, line: str) -> None:
    if kind not in self._said:
      self._said.add(kind)
      notice(line)

  def _of(self, step: int) -> str:
    return f"{self.skipped} of {step} steps ({self.skipped / step:.1%}) were not finite and were skipped"

  def _grown(self) -> str:
    return f"the loss is {self.loss:.3g}, and was {self.best:.3g} at its best"


def _is_finite(value: Any) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)
