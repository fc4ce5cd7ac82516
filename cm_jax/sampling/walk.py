"""What samplers that walk along a grid of noise levels share: their fields, and the walk, one `lax.scan`."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cm_jax.errors import UserError, one_of
from cm_jax.sampling.grids import EARLIER, GRIDS, accepted, rounded, trained_range
from cm_jax.types import Array, Denoiser, Domain, Noise, NoiseRange


def check_num_steps(num_steps: int) -> None:
  """Check a number of steps.

  Raises:
    UserError: Not an integer >= 1.
  """
  if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
    raise UserError("num_steps", num_steps, "an integer >= 1")


@dataclasses.dataclass(frozen=True)
class GridSampler(abc.ABC):
  """A sampler that walks along a grid of noise levels: what the samplers below share.

  Args:
    noise: The grid's range.
    num_steps: Their number, >= 1; each sampler says of what.
    clip: Clip every D to [-1, 1], as OpenAI's code does by default.
    grid: A name in `GRIDS`; of an earlier work's range what the network accepts.
    domain: What the network was made for, if its preconditioning says it; the grid is rounded to its levels.

  Raises:
    UserError: num_steps < 1, or no such grid.
  """

  noise: NoiseRange
  num_steps: int = 18
  clip: bool = False
  grid: str = "karras"
  domain: Domain | None = dataclasses.field(default=None, kw_only=True)

  def __post_init__(self):
    check_num_steps(self.num_steps)
    if self.grid not in GRIDS:
      raise UserError("grid", self.grid, one_of(GRIDS, self.grid))

  @property
  @abc.abstractmethod
  def nfe(self) -> int:
    """Number of network evaluations."""

  @abc.abstractmethod
  def levels(self) -> Array:
    """Return the noise levels of the walk, its end included."""

  @abc.abstractmethod
  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""

  @property
  def sigmas(self) -> tuple[float, ...]:
    """The noise levels without the end, for records."""
    return tuple(float(sigma) for sigma in self.levels()[:-1])

  def points(self, count: int, to_zero: bool) -> Array:
    """Return `count` levels of the grid, and a final 0 if asked for."""
    own = self.noise.sigma_min, self.noise.sigma_max
    is_earlier = self.grid in EARLIER
    span = accepted(trained_range(self.grid), self.noise, self.domain) if is_earlier else own
    levels = rounded(jnp.asarray(GRIDS[self.grid](count, self.noise, span)), self.domain)
    return jnp.append(levels, 0.0) if to_zero else levels

  def clipped(self, denoiser: Denoiser) -> Denoiser:
    """Return the denoiser with its output in [-1, 1], if asked for."""
    return clipped(denoiser) if self.clip else denoiser


def clipped(denoiser: Denoiser) -> Denoiser:
  """Return the denoiser with its output in [-1, 1].

  >>> clipped(lambda x, sigma: 3 * x)(jnp.array([-1.0, 0.25]), jnp.ones(2)).tolist()
  [-1.0, 0.75]
  """
  return lambda x, sigma: jnp.clip(denoiser(x, sigma), -1, 1)


def walk(
  step: Callable[[Array, Array, Array, Array], Array], noise: Noise, shape: tuple[int, ...], levels: Array
) -> Array:
  """Return the end of x -> step(x, i, sigma_i, sigma_{i+1}) along noise levels, from sigma_0 z_0.

  >>> levels = jnp.array([2.0, 1.0, 0.5])
  >>> walk(lambda x, i, t, r: x * (r / t), lambda k, shape: jnp.ones(shape), (1,), levels).tolist()
  [0.5]
  """
  z = noise(0, shape)
  levels = levels.astype(z.dtype)
  body = lambda x, item: (step(x, *item), None)
  return jax.lax.scan(body, levels[0] * z, (jnp.arange(len(levels) - 1), levels[:-1], levels[1:]))[0]
