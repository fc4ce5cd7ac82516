"""theta-, the parameters of the consistency target: the student's own, or an average of them that the optimiser carries."""

import dataclasses
from collections.abc import Callable

from cm_jax.diffusion.curriculum import Curriculum, target_decay
from cm_jax.errors import UserError
from cm_jax.types import Array


@dataclasses.dataclass(frozen=True)
class StopGradient:
  """theta- = stopgrad(theta): no average (iCT section 3.2, ECT, sCM)."""

  def decay(self, scales: Curriculum | None) -> None:
    """Return None: nothing is averaged."""
    return


@dataclasses.dataclass(frozen=True)
class Ema:
  """theta- <- mu theta- + (1 - mu) theta with a constant mu (CM eq. 8).

  Args:
    mu: In [0, 1).

  >>> Ema(0.95).decay(None)(100)
  0.95
  """

  mu: float = 0.95

  def __post_init__(self):
    if not 0 <= self.mu < 1:
      raise UserError("config.objective.target.mu", self.mu, "a number in [0, 1)")

  def decay(self, scales: Curriculum | None) -> Callable[[Array], float]:
    """Return mu(k), constant."""
    return lambda step: self.mu


@dataclasses.dataclass(frozen=True)
class CurriculumEma:
  """The average whose mu(k) = exp(s0 ln mu0 / N(k)) follows the grid (CM appendix C).

  Args:
    s0: The curriculum's own s0, its first number of discretisation steps.
    mu0: mu where N = s0, in (0, 1).
    convention: "paper" or "code", see `target_decay`.
  """

  s0: int = 2
  mu0: float = 0.9
  convention: str = "paper"

  def __post_init__(self):
    if not 0 < self.mu0 < 1:
      raise UserError("config.objective.target.mu0", self.mu0, "a number in (0, 1)")

  def decay(self, scales: Curriculum | None) -> Curriculum:
    """Return mu(k) for N(k)."""
    if scales is None:
      raise UserError("config.objective.target.name", "curriculum_ema", "pairs with a grid (karras or lognormal) whose N(k) it follows")
    return target_decay(scales, self.s0, self.mu0, self.convention)


TARGETS = {"stop_gradient": StopGradient, "ema": Ema, "curriculum_ema": CurriculumEma}
