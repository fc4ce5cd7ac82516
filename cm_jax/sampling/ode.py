"""Samplers that solve a diffusion model's ODE, or add noise on the way: Heun, Euler, DPM-2, ancestral.

Each walks along a grid of noise levels as one jitted `lax.scan`; draw 0 is the initial noise, draw i + 1 that
of step i. The state has the type of the noise.
"""

import dataclasses

import jax.numpy as jnp

from cm_jax.diffusion.drifts import drift_of
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.solvers import ancestral_levels, euler, heun
from cm_jax.sampling.churn import ChurnSampler
from cm_jax.sampling.walk import GridSampler, walk
from cm_jax.types import Array, Denoiser, Noise


@dataclasses.dataclass(frozen=True)
class Heun(ChurnSampler):
  """EDM's second-order sampler (EDM Alg. 1; with S_churn > 0 Alg. 2); the last step, to 0, is a denoise.

  Args:
    noise: The grid's range.
    num_steps: Number of grid points, >= 1; 2 num_steps - 1 network evaluations.
    clip: Clip every D to [-1, 1], as OpenAI's code does by default.
    grid: A name in `GRIDS`.
    S_churn, S_min, S_max, S_noise: See `Churn`.
    denoise: False ends at sigma_min, without the last step (jcm `sampling.denoise`).

  Raises:
    UserError: num_steps < 1, or no such grid.

  >>> from cm_jax.types import NoiseRange
  >>> sampler = Heun(NoiseRange(), 18)
  >>> sampler.nfe, sampler.sigmas[0]
  (35, 80.0)
  >>> sampler(lambda x, sigma: 0 * x + 0.5, lambda k, shape: jnp.ones(shape), (1, 1, 1, 1)).item()
  0.5
  """

  denoise: bool = True

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return heun.evaluations * (self.num_steps - 1) + self.denoise

  def levels(self) -> Array:
    """Return num_steps noise levels and a final 0, [num_steps + 1]."""
    return self.points(self.num_steps, to_zero=True)

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""
    denoiser = self.clipped(denoiser)
    drift = drift_of(denoiser)
    level = lambda sigma: jnp.broadcast_to(sigma, shape[:1])

    def step(x: Array, i: Array, t: Array, r: Array) -> Array:
      x, t = self.raised(x, i, t, noise)
      return heun(drift, x, level(t), level(r))

    levels = self.levels()
    x = walk(step, noise, shape, levels[:-1])
    if not self.denoise:
      return x
    x, t = self.raised(x, self.num_steps - 1, levels[-2].astype(x.dtype), noise)
    return denoiser(x, level(t))  # Euler's step to 0, without its rounding


@dataclasses.dataclass(frozen=True)
class Euler(GridSampler):
  """Euler's method, i.e. DDIM: num_steps intervals of a grid, by default Karras' from sigma_max to sigma_min.

  Without `denoise` it is what progressive distillation trains its student for (jcm `get_euler_sampler`,
  OpenAI `progdist`).

  Args:
    noise: The grid's range.
    num_steps: Number of intervals, >= 1, and of network evaluations without the last denoise.
    clip: Clip every D to [-1, 1].
    grid: A name in `GRIDS`.
    denoise: End with a denoise at sigma_min. Without it the last step keeps sigma_min / sigma of what it
      starts from: 0.0025 % from 80.

  Raises:
    UserError: num_steps < 1, or no such grid.

  >>> from cm_jax.types import NoiseRange
  >>> Euler(NoiseRange(), 4).nfe, Euler(NoiseRange(), 4, denoise=True).nfe
  (4, 5)
  >>> x = Euler(NoiseRange(), 4)(lambda x, sigma: 0 * x, lambda k, shape: jnp.ones(shape), (1, 1, 1, 1))
  >>> round(x.item(), 4)  # towards 0, and sigma_min of the noise is left
  0.002
  """

  denoise: bool = False

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return euler.evaluations * self.num_steps + self.denoise

  def levels(self) -> Array:
    """Return num_steps + 1 noise levels, and a final 0 with `denoise`."""
    return self.points(self.num_steps + 1, self.denoise)

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""
    drift = drift_of(self.clipped(denoiser))
    level = lambda sigma: jnp.broadcast_to(sigma, shape[:1])
    return walk(lambda x, i, t, r: euler(drift, x, level(t), level(r)), noise, shape, self.levels())


@dataclasses.dataclass(frozen=True)
class Dpm2(ChurnSampler):
  """DPM-Solver-2 as OpenAI has it: a midpoint step, the midpoint half-way in sigma^(1/3).

  Args:
    noise: The grid's range.
    num_steps: Number of steps, >= 1, the last to 0; two network evaluations each.
    clip: Clip every D to [-1, 1].
    grid: A name in `GRIDS`.
    S_churn, S_min, S_max, S_noise: See `Churn`.

  Raises:
    UserError: num_steps < 1, or no such grid.

  Note:
    It is k-diffusion's first form; since 2022-09-27 that takes the geometric mean, and Euler's step to 0.

  >>> from cm_jax.types import NoiseRange
  >>> Dpm2(NoiseRange(), 18).nfe
  36
  >>> x = Dpm2(NoiseRange(), 4)(lambda x, sigma: 0 * x, lambda k, shape: jnp.ones(shape), (1, 1, 1, 1))
  >>> abs(x.item()) < 1e-6
  True
  """

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return 2 * self.num_steps

  def levels(self) -> Array:
    """Return num_steps noise levels and a final 0, [num_steps + 1]."""
    return self.points(self.num_steps, to_zero=True)

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""
    drift = drift_of(self.clipped(denoiser))
    level = lambda sigma: jnp.broadcast_to(sigma, shape[:1])

    def step(x: Array, i: Array, t: Array, r: Array) -> Array:
      x, t = self.raised(x, i, t, noise)
      middle = ((jnp.cbrt(t) + jnp.cbrt(r)) / 2) ** 3
      halfway = euler(drift, x, level(t), level(middle))
      return x + append_dims(level(r - t), x) * drift(halfway, level(middle))

    return walk(step, noise, shape, self.levels())


@dataclasses.dataclass(frozen=True)
class Ancestral(GridSampler):
  """Ancestral sampling by Euler's steps below the next level, and noise up to it (OpenAI `ancestral`).

  Args:
    noise: The grid's range.
    num_steps: Number of steps, >= 1, the last to 0, and of network evaluations.
    clip: Clip every D to [-1, 1].
    grid: A name in `GRIDS`.

  Raises:
    UserError: num_steps < 1, or no such grid.

  >>> from cm_jax.types import NoiseRange
  >>> Ancestral(NoiseRange(), 18).nfe
  18
  >>> ones = lambda k, shape: jnp.ones(shape)
  >>> Ancestral(NoiseRange(), 4)(lambda x, sigma: 0 * x + 0.5, ones, (1, 1, 1, 1)).item()
  0.5
  """

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return euler.evaluations * self.num_steps

  def levels(self) -> Array:
    """Return num_steps noise levels and a final 0, [num_steps + 1]."""
    return self.points(self.num_steps, to_zero=True)

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""
    drift = drift_of(self.clipped(denoiser))
    level = lambda sigma: jnp.broadcast_to(sigma, shape[:1])

    def step(x: Array, i: Array, t: Array, r: Array) -> Array:
      down, up = ancestral_levels(level(t), level(r))
      return euler(drift, x, level(t), down) + append_dims(up, x) * noise(i + 1, shape)

    return walk(step, noise, shape, self.levels())
