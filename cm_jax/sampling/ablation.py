"""EDM's ablation sampler: earlier works' time steps, noise schedules and scalings, with or without churn.

With x(t) = s(t) (data + sigma(t) noise) the ODE is
dx/dt = (sigma'/sigma + s'/s) x - sigma' s/sigma D(x/s, sigma) (EDM eq. 81; Alg. 1, table 1).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.grids import vp_sigma, vp_time
from cm_jax.diffusion.precond import IDDPM
from cm_jax.diffusion.solvers import SOLVERS, heun
from cm_jax.errors import UserError, one_of
from cm_jax.sampling import grids
from cm_jax.sampling.churn import Churn
from cm_jax.sampling.walk import check_num_steps, clipped
from cm_jax.types import Array, Denoiser, Domain, Noise, NoiseRange

DISCRETIZATIONS = ("vp", "ve", "iddpm", "edm")
SCHEDULES = ("vp", "ve", "linear")
SCALINGS = ("vp", "none")


class Schedule(NamedTuple):
  """sigma(t) with its derivative and inverse, s(t) with its derivative; on the host, in float64."""

  sigma: Callable[[float], float]
  sigma_slope: Callable[[float], float]
  time: Callable[[float], float]
  scale: Callable[[float], float]
  scale_slope: Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Sampling with another work's choices; the defaults give EDM's own sampler.

  Args:
    noise: The model's range, and rho.
    num_steps: >= 2.
    discretization: Of the noise levels: "vp", "ve", "iddpm" or "edm", over the range the work trained for, of
      it what the network accepts: `domain`, else `noise`.
    schedule: sigma(t): "vp", "ve" or "linear".
    scaling: s(t): "vp" or "none".
    solver: Of `SOLVERS`, itself or its name; the last step, to 0, is always Euler's.
    alpha: Of the second-order step, in (0, 1]: 1 is Heun's, 1/2 the midpoint rule (EDM eq. 41).
    epsilon_s: Smallest time of the VP discretisation, in (0, 1).
    clip: Clip every D to [-1, 1].
    sigma_min, sigma_max: Instead of the range the work trained for; likewise only what the network accepts.
    C_1, C_2, M: Of the iDDPM discretisation.
    S_churn, S_min, S_max, S_noise: See `Churn`.
    domain: What the network was made for, if its preconditioning says it; levels are rounded to its own.

  Raises:
    UserError: An unknown name, or a value out of range.

  >>> sampler = Ablation(NoiseRange(sigma_max=200.0), 18, "vp", "vp", "vp")
  >>> sampler.nfe, round(sampler.sigmas[0], 1)
  (35, 152.2)
  >>> round(Ablation(NoiseRange(), 18, "vp", "vp", "vp").sigmas[0], 1)
  80.0
  >>> x = Ablation(NoiseRange(), 18)(lambda x, sigma: 0 * x, lambda k, shape: jnp.ones(shape), (1, 1, 1, 1))
  >>> round(x.item(), 6)
  0.0
  """

  noise: NoiseRange
  num_steps: int = 18
  discretization: str = "edm"
  schedule: str = "linear"
  scaling: str = "none"
  solver: Any = heun
  alpha: float = 1.0
  epsilon_s: float = grids.EPSILON_S
  clip: bool = False
  sigma_min: float | None = None
  sigma_max: float | None = None
  C_1: float = IDDPM.C_1
  C_2: float = IDDPM.C_2
  M: int = IDDPM.M
  S_churn: float = 0.0
  S_min: float = 0.0
  S_max: float | None = None
  S_noise: float = 1.0
  domain: Domain | None = None

  def __post_init__(self):
    check_num_steps(self.num_steps)
    if self.num_steps < 2:
      raise UserError("num_steps", self.num_steps, "at least 2")
    choices = {"discretization": DISCRETIZATIONS, "schedule": SCHEDULES, "scaling": SCALINGS}
    for field, names in choices.items():
      if getattr(self, field) not in names:
        raise UserError(field, getattr(self, field), one_of(names, getattr(self, field)))
    if isinstance(self.solver, str):
      if self.solver not in SOLVERS:
        raise UserError("solver", self.solver, one_of(SOLVERS, self.solver))
      object.__setattr__(self, "solver", SOLVERS[self.solver])
    if not 0 < self.alpha <= 1:
      raise UserError("alpha", self.alpha, "a number in (0, 1]")
    if not 0 < self.epsilon_s < 1:
      raise UserError("epsilon_s", self.epsilon_s, "a number in (0, 1)")
    low, high = self.span
    if not 0 < low < high:
      given = high if self.sigma_min is None else low
      field = "sigma_max" if self.sigma_min is None else "sigma_min"
      raise UserError(field, given, f"a range inside the network's, not {low:g} to {high:g}")

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return self.solver.evaluations * (self.num_steps - 1) + 1

  @property
  def span(self) -> grids.Span:
    """The range of the noise levels."""
    low, high = grids.trained_range(self.discretization, self.epsilon_s)
    low, high = (
      low if self.sigma_min is None else self.sigma_min,
      high if self.sigma_max is None else self.sigma_max,
    )
    return grids.accepted((low, high), self.noise, self.domain)

  @property
  def sigmas(self) -> tuple[float, ...]:
    """The noise levels of the steps."""
    return tuple(float(sigma) for sigma in self.levels())

  def levels(self) -> np.ndarray:
    """Return the noise levels sigma_0 > ... > sigma_{N-1}, float64."""
    own = {"vp": {"epsilon_s": self.epsilon_s}, "iddpm": {"C_1": self.C_1, "C_2": self.C_2, "M": self.M}}
    grid = grids.GRIDS[self.discretization]
    levels = grid(self.num_steps, self.noise, self.span, **own.get(self.discretization, {}))
    return grids.rounded(levels, self.domain)

  def curves(self) -> Schedule:
    """Return sigma(t) and s(t)."""
    sigma, sigma_slope, time = self._sigma()
    if self.scaling == "none":
      return Schedule(sigma, sigma_slope, time, lambda t: 1.0, lambda t: 0.0)
    scale = lambda t: 1 / math.sqrt(1 + sigma(t) ** 2)
    return Schedule(sigma, sigma_slope, time, scale, lambda t: -sigma(t) * sigma_slope(t) * scale(t) ** 3)

  def _sigma(self) -> tuple[Callable[[float], float], ...]:
    if self.schedule == "linear":
      return (lambda t: t), (lambda t: 1.0), (lambda level: level)
    if self.schedule == "ve":
      return math.sqrt, (lambda t: 0.5 / math.sqrt(t)), (lambda level: level**2)
    beta_d, beta_min = grids.vp_betas(self.span, self.epsilon_s)
    sigma = lambda t: vp_sigma(t, beta_d, beta_min)
    slope = lambda t: 0.5 * (beta_d * t + beta_min) * (sigma(t) + 1 / sigma(t))
    return sigma, slope, lambda level: vp_time(level, beta_d, beta_min)

  def raised(self, t: float, curves: Schedule) -> tuple[float, float, float]:
    """Return (t, grow, added): the time after churn, the factor of x, the deviation of the noise."""
    churn, sigma = Churn(self.S_churn, self.S_min, self.S_max, self.S_noise), curves.sigma(t)
    if not self.S_churn or not churn.S_min <= sigma <= churn.top:
      return t, 1.0, 0.0
    after = curves.time(
      grids.rounded(np.array(sigma * (1 + churn.gamma(self.num_steps))), self.domain).item()
    )
    added = math.sqrt(max(curves.sigma(after) ** 2 - sigma**2, 0.0)) * curves.scale(after) * self.S_noise
    return after, curves.scale(after) / curves.scale(t), added

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""
    denoiser = clipped(denoiser) if self.clip else denoiser
    curves = self.curves()
    times = [curves.time(float(sigma)) for sigma in self.levels()]
    z = noise(0, shape)

    def coefficients(t: float) -> list[float]:
      sigma, s = curves.sigma(t), curves.scale(t)
      linear = curves.sigma_slope(t) / sigma + curves.scale_slope(t) / s
      return [s, sigma, linear, curves.sigma_slope(t) * s / sigma]

    def rate(x: Array, at: Array) -> Array:
      s, sigma, linear, pull = at
      return linear * x - pull * denoiser(x / s, jnp.broadcast_to(sigma, shape[:1]))

    def churned(x: Array, i: Array | int, grow: Array, added: Array) -> Array:
      return grow * x + added * noise(i + 1, shape) if self.S_churn else x

    x = curves.sigma(times[0]) * curves.scale(times[0]) * z
    steps = []
    for t, following in itertools.pairwise(times):
      t, grow, added = self.raised(t, curves)
      h = following - t
      steps.append([h, grow, added, *coefficients(t), *coefficients(t + self.alpha * h)])

    def step(x: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
      i, numbers = item
      h, grow, added = numbers[:3]
      x = churned(x, i, grow, added)
      d = rate(x, numbers[3:7])
      if self.solver.order == 1:
        return x + h * d, None
      other = rate(x + self.alpha * h * d, numbers[7:])
      return x + h * ((1 - 0.5 / self.alpha) * d + 0.5 / self.alpha * other), None

    x = jax.lax.scan(step, x, (jnp.arange(len(steps)), jnp.asarray(steps, x.dtype)))[0]
    t, *after = self.raised(times[-1], curves)
    x = churned(x, len(steps), *jnp.asarray(after, x.dtype))
    return x - t * rate(x, jnp.asarray(coefficients(t), x.dtype))
