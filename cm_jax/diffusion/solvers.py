"""One step of a probability-flow ODE dx/dsigma = drift(x, sigma),
and the integration over a grid of noise levels."""

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from cm_jax.diffusion.noise import append_dims
from cm_jax.types import Array, Drift


class Solver(Protocol):
  """One step of the ODE: (drift, x [B,H,W,C], t [B], r [B]) -> x at noise level r, which may be 0.

  `order` is that of its error over the whole way; `evaluations` those of the drift in one step.
  """

  @property
  def order(self) -> int: ...

  @property
  def evaluations(self) -> int: ...

  def __call__(self, drift: Drift, x: Array, t: Array, r: Array, /) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Euler:
  """Euler's step from noise level t to r: x + (r - t) drift(x, t) (CM section 4).

  >>> import jax.numpy as jnp
  >>> euler(lambda x, s: x, jnp.ones((1, 1, 1, 1)), jnp.ones(1), jnp.full(1, 0.5)).item()
  0.5
  """

  order: ClassVar[int] = 1
  evaluations: ClassVar[int] = 1

  def __call__(self, drift: Drift, x: Array, t: Array, r: Array) -> Array:
    """Take the step."""
    return x + append_dims(r - t, x) * drift(x, t)


@dataclasses.dataclass(frozen=True)
class Heun:
  """Heun's step from noise level t to r: the mean of the drifts at both ends (EDM Alg. 1; CM eq. 6).

  Where r = 0 the drift at r is 0/0 and the step is Euler's, as in EDM.

  >>> import jax.numpy as jnp
  >>> heun(lambda x, s: x, jnp.ones((1, 1, 1, 1)), jnp.ones(1), jnp.full(1, 0.5)).item()
  0.625
  """

  order: ClassVar[int] = 2
  evaluations: ClassVar[int] = 2

  def __call__(self, drift: Drift, x: Array, t: Array, r: Array) -> Array:
    """Take the step."""
    first = drift(x, t)
    predicted = x + append_dims(r - t, x) * first
    safe = jnp.where(r > 0, r, t)
    second = drift(predicted, safe)
    corrected = x + append_dims(0.5 * (r - t), x) * (first + second)
    return jnp.where(append_dims(r > 0, x), corrected, predicted)


euler, heun = Euler(), Heun()
SOLVERS: dict[str, Solver] = {"heun": heun, "euler": euler}


def ancestral_levels(t: Array, r: Array) -> tuple[Array, Array]:
  """Return (down, up) for a stochastic step from noise level t to r < t:
  integrate to `down`, then add noise of deviation `up`.

  up^2 = r^2 (t^2 - r^2)/t^2, the variance of DDPM's posterior, and down^2 = r^2 - up^2,
  so that the result has level r.

  >>> import jax.numpy as jnp
  >>> [round(level.item(), 3) for level in ancestral_levels(jnp.full(1, 2.0), jnp.full(1, 1.0))]
  [0.5, 0.866]
  """
  return r**2 / t, r * jnp.sqrt((t - r) * (t + r)) / t


def integrate(drift: Drift, x: Array, sigmas: Array, solver: Solver = heun) -> Array:
  """Integrate the ODE over a grid of noise levels, as one `lax.scan`.

  Args:
    drift: dx/dsigma.
    x: [B,H,W,C] at the first level.
    sigmas: The grid in the order of integration, [N]; or [N, B],
    each example on a grid of its own. solver: Of `SOLVERS`.

  Returns:
    x at the last level.

  >>> import jax.numpy as jnp
  >>> x, sigmas = jnp.full((1, 1, 1, 1), 2.0), jnp.array([2.0, 1.0, 0.5])
  >>> x = integrate(lambda x, s: x / append_dims(s, x), x, sigmas)
  >>> x.item()  # dx/ds = x/s keeps x/s
  0.5
  """

  def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
    t, r = (jnp.broadcast_to(level, x.shape[:1]) for level in ends)
    return solver(drift, x, t, r), None

  return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))[0]
