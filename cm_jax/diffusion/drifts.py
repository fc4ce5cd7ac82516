"""The only difference between distillation and training in isolation:
where the drift of the probability-flow ODE comes from.

PF ODE of the variance-exploding process: dx/dsigma = -sigma score(x, sigma) = (x - D(x, sigma))
/ sigma (EDM eq. 1, 3; CM eq. 2).
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

from cm_jax.diffusion.noise import append_dims
from cm_jax.types import Array, Batch, Condition, Context, Denoiser, Drift


def drift_of(denoiser: Denoiser) -> Drift:
  """Return the drift of a denoiser: (x, sigma) -> (x - D(x, sigma)) / sigma (CM eq. 6, with a score model).

  >>> import jax.numpy as jnp
  >>> drift = drift_of(lambda x, sigma: jnp.zeros_like(x))
  >>> drift(jnp.full((1, 1, 1, 1), 6.0), jnp.array([2.0])).item()
  3.0
  """

  def drift(x: Array, sigma: Array) -> Array:
    return (x - denoiser(x, sigma)) / append_dims(sigma, x)

  return drift


def monte_carlo_drift(data: Array) -> Drift:
  """Return the drift of the unbiased Monte Carlo score estimate: (x_t, t) -> (x_t - x) / t for x_t = x + t z.

  E[(x - x_t)/t^2 | x_t] is the score, so this is an unbiased estimate of the drift given x_t (CM eq. 9,
  section 5). Along it x_t moves to x + r z exactly.

  Args:
    data: The clean images x [B,H,W,C] that x_t was made from.

  >>> import jax.numpy as jnp
  >>> drift = monte_carlo_drift(jnp.full((1, 1, 1, 1), 4.0))
  >>> drift(jnp.full((1, 1, 1, 1), 6.0), jnp.array([2.0])).item()
  1.0
  """
  return drift_of(lambda x, sigma: data)


class DriftSource(Protocol):
  """Where a drift comes from: (context, batch, condition) -> Drift;
  `needs_teacher` says whether it asks one."""

  @property
  def needs_teacher(self) -> bool: ...

  def __call__(self, context: Context, batch: Batch, condition: Condition, /) -> Drift: ...


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Distillation (CM Alg. 2): the drift of `context.teacher`, frozen and in evaluation mode."""

  needs_teacher: ClassVar[bool] = True

  def __call__(self, context: Context, batch: Batch, condition: Condition) -> Drift:
    """Return the teacher's drift under a condition.

    Raises:
      ValueError: The context has no teacher.
    """
    if context.teacher is None:
      raise ValueError("the drift of a teacher needs context.teacher")
    return drift_of(context.teacher(context.teacher_params, condition))


@dataclasses.dataclass(frozen=True)
class MonteCarlo:
  """Training in isolation (CM Alg. 3): the unbiased estimate from the clean images of the batch."""

  needs_teacher: ClassVar[bool] = False

  def __call__(self, context: Context, batch: Batch, condition: Condition) -> Drift:
    """Return the drift of the batch's images."""
    return monte_carlo_drift(batch["image"])


DRIFTS: dict[str, Callable[..., DriftSource]] = {"teacher": Teacher, "monte_carlo": MonteCarlo}
