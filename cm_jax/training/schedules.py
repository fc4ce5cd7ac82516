"""Learning rates as functions of the train step: a linear warm-up times a decay, afresh in every stage."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from cm_jax.errors import UserError, one_of
from cm_jax.types import Array, Schedule


@dataclasses.dataclass(frozen=True)
class Shape:
  """The form of a decay: `factor(k, length)` of the peak after k of `length` steps.

  Args:
    factor: (k float [], length float []) -> [].
    has_length: Whether it has a length at all.
    to_zero: Whether it ends at zero, so that nothing is learnt beyond its length.
  """

  factor: Callable[[Array, Array], Array]
  has_length: bool = True
  to_zero: bool = False


SCHEDULES: dict[str, Shape] = {
  "constant": Shape(lambda k, length: jnp.ones_like(k), has_length=False),
  "cosine": Shape(lambda k, length: (1 + jnp.cos(jnp.pi * jnp.minimum(k / length, 1))) / 2, to_zero=True),
  "linear": Shape(lambda k, length: 1 - jnp.minimum(k / length, 1), to_zero=True),
  "inverse_sqrt": Shape(lambda k, length: 1 / jnp.sqrt(jnp.maximum(k / length, 1))),  # EDM2
}


def learning_rate(
  peak: float,
  warmup_steps: float = 0,
  schedule: str = "constant",
  decay_steps: float = 0,
  stages: tuple[int, ...] = (),
  length: int = 0,
) -> Schedule:
  """Return the learning rate as a function of the step.

  Args:
    peak: After the warm-up.
    warmup_steps: Step k < warmup_steps of a stage takes (k + 1) / warmup_steps of the rate.
    schedule: Of `SCHEDULES`: "constant"; "cosine" or "linear", to zero over `decay_steps`; "inverse_sqrt",
      1/sqrt(max(k / decay_steps, 1)) (EDM2).
    decay_steps: Length of the decay; 0: the run's, or with stages, for one that ends at zero, the stage's
      own.
    stages: The first step of each stage and the end of the last, ascending from 0: k counts from its stage's
      start (progressive distillation). Empty for one stage without an end.
    length: Of the run, in steps; 0: without an end.

  Raises:
    UserError: An unknown schedule, one without a length, or one that reaches zero before the run ends.

  Note:
    EDM starts its warm-up at exactly 0, a step that trains nothing; here the first step already moves.

  >>> [round(float(learning_rate(1.0, 4, "linear", 8)(k)), 3) for k in (0, 3, 4, 8)]
  [0.25, 0.625, 0.5, 0.0]
  >>> [round(float(learning_rate(1.0, 0, "linear", 0, (0, 10, 30))(k)), 3) for k in (0, 9, 10, 20, 30)]
  [1.0, 0.1, 1.0, 0.5, 0.0]
  """
  if schedule not in SCHEDULES:
    raise UserError("schedule", schedule, one_of(SCHEDULES, schedule))
  shape = SCHEDULES[schedule]
  spans_stage = bool(stages) and shape.to_zero and not decay_steps
  decay_steps = decay_steps or length
  if shape.has_length and decay_steps < 1 and not spans_stage:
    raise UserError("decay_steps", decay_steps, f"at least one batch, for the schedule {schedule!r}")
  if shape.to_zero and not stages and decay_steps < length:
    expected = (
      f"0, to follow num_images, or no less than it: the rate would be 0 from step {decay_steps} of {length}"
    )
    raise UserError("decay_steps", decay_steps, expected)
  starts, ends = (stages[:-1], stages[1:]) if stages else ((0,), (0,))
  lengths = [
    end - start if spans_stage else max(decay_steps, 1) for start, end in zip(starts, ends, strict=True)
  ]

  def rate(step: Array) -> Array:
    first = jnp.asarray(starts, jnp.int32)
    stage = jnp.searchsorted(first, jnp.asarray(step, jnp.int32), side="right") - 1
    k = (step - first[stage]).astype(jnp.float32)
    warmup = jnp.minimum((k + 1) / max(warmup_steps, 1), 1)
    return peak * warmup * shape.factor(k, jnp.asarray(lengths, jnp.float32)[stage])

  return rate
