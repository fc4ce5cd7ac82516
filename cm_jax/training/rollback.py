"""A row of steps that were not finite: what ends it, by `config.run.on_skips`, and what is said of it."""

import dataclasses
from typing import Any

from cm_jax.errors import TrainingStopped
from cm_jax.notices import notice
from cm_jax.training.health import GOOD, Health
from cm_jax.training.resume import Position


@dataclasses.dataclass(frozen=True)
class Row:
  """Steps in a row that were not finite, and were skipped; at least `config.run.max_nonfinite`.

  Attributes:
    step: The last of them.
    length: How many.
    good: Weights of this step and before are good: none of these was skipped, and the loss was near its best.
  """

  step: int
  length: int
  good: int

  @classmethod
  def seen(cls, step: int, length: int, health: Health) -> "Row":
    """Return the row that ends at a step."""
    began = step - length
    return cls(step, length, min(began, health.good) if health.growth > GOOD else began)

  def check(self, run: Any, position: Position) -> None:
    """Check that training is to go back.

    Args:
      run: `config.run`.
      position: Where it is, with the rollbacks so far.

    Raises:
      TrainingStopped: It is not, or has done it as often as it may.
    """
    if run.on_skips == "rollback" and position.rollbacks < run.max_rollbacks:
      return
    found = f"not finite for {self.length} steps in a row up to step {self.step}"
    if position.rollbacks:
      found += f", after {position.rollbacks} rollbacks"
    raise TrainingStopped("loss", found, "finite numbers, as a lower learning rate may give")

  def tell(self, step: int, position: Position, most: int) -> None:
    """Say what was done.

    Args:
      step: That training went back to.
      position: Where it goes on.
      most: How often it may.
    """
    to = f"checkpoint {step}" if step else "the start"
    notice(
      f"step {self.step}: {self.length} steps in a row were not finite; training goes back to {to} and on "
      f"with the data after them (rollback {position.rollbacks} of at most {most})"
    )
