"""theta-, the parameters of the consistency target: the student's own,
or an average of them that the optimiser carries."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from cm_jax.diffusion.curriculum import Curriculum, target_decay
from cm_jax.errors import UserError
from cm_jax.types import Array, Decay


class Target(Protocol):
  """Where theta- comes from: `decay(N(k) or None)` is mu(k) of an average, None for the student itself."""

  def decay(self, scales: Curriculum | None, /) -> Decay | None: ...


@dataclasses.dataclass(frozen=True)
class Mu:
  """mu(k) of a target average, from a function of the step.

  >>> Mu(lambda step: 0.75).gain(3)
  0.25
  """

  at: Callable[[Array | int], Array | float]

  def __call__(self, step: Array | int) -> Array | float:
    """Return mu(step)."""
    return self.at(step)

  def gain(self, step: Array | int) -> Array | float:
    """Return 1 - mu(step)."""
    return 1 - self.at(step)


@dataclasses.dataclass(frozen=True)
class StopGradient:
  """theta- = stopgrad(theta): no average (iCT section 3.2, ECT, sCM)."""

  def decay(self, scales: Curriculum | None) -> Decay | None:
    """Return None: nothing is averaged."""
    return None


@dataclasses.dataclass(frozen=True)
class Ema:
  """theta- <- mu theta- + (1 - mu) theta with a constant mu (CM eq. 8).

  Args:
    mu: In [0, 1).

  Raises:
    UserError: mu outside [0, 1).

  >>> Ema(0.95).decay(None)(100)
  0.95
  """

  mu: float = 0.95

  def __post_init__(self):
    if not 0 <= self.mu < 1:
      raise UserError("mu", self.mu, "a number in [0, 1)")

  def decay(self, scales: Curriculum | None) -> Decay | None:
    """Return mu(k), constant."""
    return Mu(lambda step: self.mu)


@dataclasses.dataclass(frozen=True)
class CurriculumEma:
  """The average whose mu(k) = exp(s0 ln mu0 / N(k)) follows the grid (CM appendix C).

  Args:
    s0: The curriculum's own s0, its first number of discretisation steps.
    mu0: mu where N = s0, in (0, 1).
    convention: "paper" or "code", see `target_decay`.

  Raises:
    UserError: A value out of range; pairs without a grid.
  """

  s0: int = 2
  mu0: float = 0.9
  convention: str = "paper"

  def __post_init__(self):
    if not 0 < self.mu0 < 1:
      raise UserError("mu0", self.mu0, "a number in (0, 1)")
    if self.convention not in ("paper", "code"):
      raise UserError("convention", self.convention, "paper or code")

  def decay(self, scales: Curriculum | None) -> Decay | None:
    """Return mu(k) for N(k)."""
    if scales is None:
      expected = "pairs with a grid (karras or lognormal) whose N(k) it follows"
      raise UserError("target.name", "curriculum_ema", expected)
    return Mu(target_decay(scales, self.s0, self.mu0, self.convention))


TARGETS: dict[str, Callable[..., Target]] = {
  "stop_gradient": StopGradient,
  "ema": Ema,
  "curriculum_ema": CurriculumEma,
}
