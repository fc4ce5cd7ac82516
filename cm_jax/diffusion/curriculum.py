"""Curricula: N(k) and mu(k), computed in float64 on the host once;
the step only looks them up, so a new N never recompiles.

A curriculum is a piecewise constant function of the training step k: `Curriculum(starts, values)` holds value
values[j] for starts[j] <= k < starts[j + 1]. `length` is that of the run in steps: what is left 0 follows it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm_jax.errors import UserError
from cm_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Curriculum:
  """A piecewise constant function of the step.

  Args:
    starts: First step of each piece; increasing, the first is 0.
    values: The value on each piece.
    end: Where the last piece ends, if its length matters (`halving`).

  >>> curriculum = Curriculum(starts=(0, 10), values=(2, 4))
  >>> [int(curriculum(k)) for k in (0, 9, 10, 10**6)]
  [2, 2, 4, 4]
  """

  starts: tuple[int, ...]
  values: tuple[float, ...]
  end: int | None = None

  def __call__(self, step: Array | int) -> Array:
    """Return the value at `step` (traced or not), int32 if all values are integers, else float32."""
    xp: Any = np if isinstance(step, (int, np.ndarray, np.generic)) else jnp  # no compiling
    starts = xp.asarray(self.starts, np.int32)
    piece = xp.searchsorted(starts, xp.asarray(step, np.int32), side="right") - 1
    exact = all(float(value).is_integer() for value in self.values)
    values = xp.asarray(self.values, jnp.int32 if exact else jnp.result_type(float))
    return jnp.asarray(values[piece])

  def map(self, function: Callable[[float], float]) -> "Curriculum":
    """Apply a host function (in float64) to every value: how mu(k) follows N(k)."""
    return Curriculum(self.starts, tuple(function(value) for value in self.values))


def constant(value: float) -> Curriculum:
  """Return the curriculum that never changes: CD's fixed N.

  >>> int(constant(18)(123))
  18
  """
  return Curriculum((0,), (value,))


def _pieces(values: np.ndarray) -> Curriculum:
  starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
  return Curriculum(tuple(starts.tolist()), tuple(values[starts].tolist()))


def progressive_scales(s0: int, s1: int, total_steps: int = 0, length: int = 0) -> Curriculum:
  """Return CT's N(k) = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1 for k = 0..K-1 (CM appendix C).

  The value before the +1 is floored at 1, as both official codes do. The last N is s1 + 1.

  Args:
    s0, s1: First and last number of discretisation steps, 1 <= s0 <= s1.
    total_steps: K, in training steps; N stays constant from K on. 0: the run's length.
    length: Of the run, in steps.

  Raises:
    UserError: s0, s1 or K out of range.

  >>> scales = progressive_scales(2, 150, 800_000)
  >>> [int(scales(k)) for k in (0, 1, 799_999, 900_000)]
  [2, 3, 151, 151]
  """
  total_steps = _checked(s0, s1, total_steps, length)
  k = np.arange(total_steps, dtype=np.float64)
  scales = np.ceil(np.sqrt(k / total_steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1)
  return _pieces(np.maximum(scales, 1).astype(np.int64) + 1)


def doubling_scales(s0: int, s1: int, total_steps: int = 0, length: int = 0) -> Curriculum:
  """Return iCT's N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K / (log2 floor(s1/s0) + 1))
  (iCT section 3.4).

  Args:
    s0, s1: First and last number of discretisation steps, 1 <= s0 <= s1.
    total_steps: K, in training steps; 0: the run's length.
    length: Of the run, in steps.

  Raises:
    UserError: s0, s1 or K out of range.

  >>> scales = doubling_scales(10, 1280, 400_000)
  >>> [int(scales(k)) for k in (0, 49_999, 50_000, 399_999)]
  [11, 11, 21, 1281]
  """
  total_steps = _checked(s0, s1, total_steps, length)
  period = max(int(total_steps / (math.log2(s1 // s0) + 1)), 1)
  k = np.arange(total_steps, dtype=np.int64)
  # Exponents beyond 62 would overflow, and s1 caps them anyway.
  return _pieces(np.minimum(s0 * 2 ** np.minimum(k // period, 40), s1) + 1)


def stages(stage_steps: int = 0, num_stages: int = 8, length: int = 0) -> Curriculum:
  """Return ECT's stage s(k) = min(floor(k / stage_steps), num_stages - 1).

  Args:
    stage_steps: Length of a stage in training steps; 0: the run's length over their number.
    num_stages: Number of stages; 0: as many as the run is long, as in ECT's code, where a longer run goes on
      to finer stages.
    length: Of the run, in steps.

  Raises:
    UserError: A negative number, or a stage without a step.

  >>> [int(stages(100, 3)(k)) for k in (0, 99, 100, 1000)]
  [0, 0, 1, 2]
  >>> stages(num_stages=3, length=90).starts, stages(40, 0, length=90).starts
  ((0, 30, 60), (0, 40, 80))
  """
  if num_stages < 0:
    raise UserError("num_stages", num_stages, "at least one stage, or 0 for as many as the run is long")
  if not num_stages and not (stage_steps and length):
    expected = "at least one stage; 0, as many as the run is long, needs stage_images and num_images"
    raise UserError("num_stages", 0, expected)
  num_stages = num_stages or -(-length // stage_steps)
  stage_steps = stage_steps or length // num_stages
  if stage_steps < 1:
    raise UserError("stage_steps", stage_steps, "stages of at least one step")
  return Curriculum(tuple(s * stage_steps for s in range(num_stages)), tuple(range(num_stages)))


def halving(
  first: int, stage_steps: int = 0, last_stage_steps: int = 0, last_factor: float = 1.0, length: int = 0
) -> Curriculum:
  """Return progressive distillation's M(k) = first, first/2, ..., 2,
  1 sampling steps (Salimans & Ho 2022, Alg. 2).

  jcm's recipe is 4096, 50k steps a stage and 100k for the last two (M = 2, 1): last_factor = 2.

  Args:
    first: The student's sampling steps in the first stage, a power of two.
    stage_steps: Length of a stage in training steps; 0: what makes all stages together as long as the run.
    last_stage_steps: Length of the stages with M <= 2; 0: last_factor times that of the others.
    last_factor: > 0.
    length: Of the run, in steps.

  Raises:
    UserError: A value out of range.

  >>> halving(4, 10, 30)
  Curriculum(starts=(0, 10, 40), values=(4, 2, 1), end=70)
  >>> halving(4, last_factor=2.0, length=50)
  Curriculum(starts=(0, 10, 30), values=(4, 2, 1), end=50)
  """
  if first < 1 or first & (first - 1):
    raise UserError("first", first, "a power of two")
  if last_factor <= 0:
    raise UserError("last_factor", last_factor, "a number above 0")
  values = tuple(first >> stage for stage in range(first.bit_length()))
  shares = [last_factor if value <= 2 else 1.0 for value in values]
  if stage_steps:
    last = last_stage_steps or round(last_factor * stage_steps)
    lengths = [last if value <= 2 else stage_steps for value in values]
    ends = [sum(lengths[: stage + 1]) for stage in range(len(values))]
  else:
    ends = [round(length * sum(shares[: stage + 1]) / sum(shares)) for stage in range(len(values))]
  starts = (0, *ends[:-1])
  if any(start >= end for start, end in zip(starts, ends, strict=True)):
    raise UserError("stage_steps", stage_steps, "stages of at least one step")
  return Curriculum(starts, values, ends[-1])


CURRICULA: dict[str, Callable[..., Curriculum]] = {
  "constant": constant,
  "progressive": progressive_scales,
  "doubling": doubling_scales,
  "stages": stages,
  "halving": halving,
}


def target_decay(scales: Curriculum, s0: int, mu0: float, convention: str = "paper") -> Curriculum:
  """Return CT's mu(k) = exp(s0 ln mu0 / N(k)) (CM appendix C).

  Args:
    scales: N(k), counting grid points.
    s0: The curriculum's first number of discretisation steps.
    mu0: Decay at the start, in [0, 1); 0 means no average.
    convention: "paper" divides by N(k); "code" divides by N(k) - 1,
      as both official codes do (they pass N before its +1).

  Raises:
    UserError: An unknown convention.

  >>> scales = progressive_scales(2, 150, 800_000)
  >>> [round(float(target_decay(scales, 2, 0.9, c)(0)), 4) for c in ("paper", "code")]
  [0.9, 0.81]
  """
  if convention not in ("paper", "code"):
    raise UserError("convention", convention, "paper or code")
  offset = 0 if convention == "paper" else 1
  return scales.map(lambda n: math.exp(s0 * math.log(mu0) / (n - offset)) if mu0 > 0 else 0.0)


def _checked(s0: int, s1: int, total_steps: int, length: int) -> int:
  """Return K, the run's length where it is left 0."""
  if not 1 <= s0 <= s1:
    raise UserError("s0", s0, f"1 <= s0 <= s1 = {s1}")
  total_steps = total_steps or length
  if total_steps < 1:
    raise UserError("total_steps", total_steps, "at least one step's worth of images")
  return total_steps
