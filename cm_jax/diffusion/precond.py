"""Preconditionings: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) (EDM eq. 7).

One is a frozen dataclass called as `precond(sigma, train=False) -> Scalings`; `trigflow` says what F is in
TrigFlow, and is None where it is nothing; `domain` says which noise levels F is for, and is None where any.
Everything is float32 or float64 whatever the network computes in (invariant 9).
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.grids import vp_sigma, vp_time
from cm_jax.errors import UserError
from cm_jax.types import Array, Domain, NoiseRange, Precond, Scalings, TrigScalings

MAX_STEPS = 100_000  # of a discrete preconditioning, a loop of Python over them


@dataclasses.dataclass(frozen=True)
class EDM:
  """EDM's preconditioning (EDM table 1): what diffusion teachers use.

  c_skip = s_d^2/(s^2 + s_d^2), c_out = s s_d/sqrt(s^2 + s_d^2), c_in = 1/sqrt(s^2 + s_d^2),
  c_noise = ln(s)/4.

  >>> EDM(NoiseRange(sigma_data=1.0))(jnp.ones(1)).c_skip.tolist()
  [0.5]

  Note:
    OpenAI's ImageNet and LSUN networks take 1000 c_noise: `time_scale` is 1000 for them.
  """

  noise: NoiseRange
  time_scale: float = 1.0

  domain: ClassVar[None] = None

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B], > 0."""
    sigma_data = self.noise.sigma_data
    total = sigma**2 + sigma_data**2
    return Scalings(
      sigma_data**2 / total,
      sigma * sigma_data / jnp.sqrt(total),
      1 / jnp.sqrt(total),
      self.time_scale * (jnp.log(sigma) / 4),
    )

  def trigflow(self, t: Array) -> TrigScalings:
    """Return what F is in TrigFlow at angles t [B], sigma = sigma_data tan t:
    F_trig = -F, c_noise = ln(sigma_data tan t)/4 (sCM B.1).

    The quotient (cos t x_t - D(x_t / cos t, sigma_data tan t)) / (sigma_data sin t) is the same number,
    but 0/0 near t = 0.
    """
    c_noise = self.time_scale * (jnp.log(self.noise.sigma_data * jnp.tan(t)) / 4)
    return TrigScalings(-1.0, c_noise, jnp.full_like(t, self.time_scale / 4))


@dataclasses.dataclass(frozen=True)
class TrigFlow:
  """TrigFlow's parameterisation as a denoiser of x at noise level sigma (sCM eq. 4;
  t = arctan(sigma / sigma_data)).

  D = cos t x_t - sin t sigma_data F(x_t / sigma_data, t) with x_t = cos t x: c_skip = cos^2 t, c_out = -sin t
  sigma_data, c_in = cos t / sigma_data, c_noise = t. It is EDM's with F's sign turned and the angle as the
  time; at sigma = 0 it is the identity.

  >>> round(TrigFlow(NoiseRange(sigma_data=1.0))(jnp.ones(1)).c_noise.item(), 4)
  0.7854
  """

  noise: NoiseRange

  domain: ClassVar[None] = None

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B], >= 0."""
    c_skip, c_out, c_in, _ = EDM(self.noise)(sigma)
    return Scalings(c_skip, -c_out, c_in, jnp.arctan(sigma / self.noise.sigma_data))

  def trigflow(self, t: Array) -> TrigScalings:
    """Return what F is in TrigFlow at angles t [B]: itself."""
    return TrigScalings(1.0, t, jnp.cos(t) * jnp.sin(t))


@dataclasses.dataclass(frozen=True)
class Boundary:
  """The consistency model's preconditioning: f(x, sigma_min) = x exactly (CM appendix C, eq. 25).

  c_skip = s_d^2/((s - eps)^2 + s_d^2), c_out = (s - eps) s_d/sqrt(s^2 + s_d^2); c_in and c_noise are EDM's.
  The square root takes the unshifted s, as in the paper and both official codes.

  >>> f = Boundary(NoiseRange())(jnp.full(1, 0.002))
  >>> f.c_skip.tolist(), f.c_out.tolist()
  ([1.0], [0.0])
  """

  noise: NoiseRange
  time_scale: float = 1.0  # as in EDM

  trigflow: ClassVar[None] = None
  domain: ClassVar[None] = None

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B], >= sigma_min."""
    sigma_data, shifted = self.noise.sigma_data, sigma - self.noise.sigma_min
    c_skip = sigma_data**2 / (shifted**2 + sigma_data**2)
    c_out = shifted * sigma_data / jnp.sqrt(sigma**2 + sigma_data**2)
    return EDM(self.noise, self.time_scale)(sigma)._replace(c_skip=c_skip, c_out=c_out)


@dataclasses.dataclass(frozen=True)
class ECT:
  """ECT's pair: EDM's scalings in training, where r = 0 enforces the boundary,
  and the boundary form in evaluation (ECT `ECMPrecond`).

  Note:
    `noise.sigma_min` is the boundary; ECT's published checkpoints take 0.003. Below it c_out turns negative.

  >>> precond = ECT(NoiseRange())
  >>> [precond(jnp.full(1, 0.002), train).c_out.tolist()[0] > 0 for train in (True, False)]
  [True, False]
  """

  noise: NoiseRange

  trigflow: ClassVar[None] = None
  domain: ClassVar[None] = None

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B]."""
    return (EDM if train else Boundary)(self.noise)(sigma)


@dataclasses.dataclass(frozen=True)
class VP:
  """The variance-preserving preconditioning of DDPM++ (EDM table 1, column VP).

  c_skip = 1, c_out = -s, c_in = 1/sqrt(s^2 + 1), c_noise = (M - 1) t(s), where
  t(s) = (sqrt(beta_min^2 + 2 beta_d ln(1 + s^2)) - beta_min)/beta_d inverts s(t)
  = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

  >>> VP(NoiseRange())(jnp.full(1, 3.0)).c_out.tolist()
  [-3.0]
  """

  noise: NoiseRange
  beta_d: float = 19.9
  beta_min: float = 0.1
  M: int = 1000
  epsilon_t: float = 1e-5  # the smallest time of its training

  trigflow: ClassVar[None] = None

  @property
  def domain(self) -> Domain:
    """The levels of the times from epsilon_t to 1."""
    return Domain(*(vp_sigma(t, self.beta_d, self.beta_min) for t in (self.epsilon_t, 1.0)))

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B], > 0."""
    return Scalings(jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(sigma**2 + 1), (self.M - 1) * self.time(sigma))

  def time(self, sigma: Array) -> Array:
    """Return t(s), in [0, 1] for the levels of training."""
    return vp_time(sigma, self.beta_d, self.beta_min)

  def sigma(self, t: Array) -> Array:
    """Return s(t)."""
    return vp_sigma(t, self.beta_d, self.beta_min)


@dataclasses.dataclass(frozen=True)
class VE:
  """The variance-exploding preconditioning of NCSN++ (EDM table 1, column VE):
  c_skip = 1, c_out = s, c_in = 1, c_noise = ln(s/2).

  >>> VE(NoiseRange())(jnp.full(1, 2.0)).c_noise.tolist()
  [0.0]
  """

  noise: NoiseRange
  sigma_min: float = 0.02  # of its training
  sigma_max: float = 100.0

  trigflow: ClassVar[None] = None

  @property
  def domain(self) -> Domain:
    """The levels of its training."""
    return Domain(self.sigma_min, self.sigma_max)

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B], > 0."""
    one = jnp.ones_like(sigma)
    return Scalings(one, sigma, one, jnp.log(sigma / 2))


@dataclasses.dataclass(frozen=True)
class IDDPM:
  """The preconditioning of improved DDPM and ADM (EDM table 1, column iDDPM).

  c_skip = 1, c_out = -s, c_in = 1/sqrt(s^2 + 1), c_noise = M - 1 - argmin_j |u_j - s|, with u_M = 0,
  u_(j-1) = sqrt((u_j^2 + 1)/max(a_(j-1)/a_j, C_1) - 1) and a_j = sin^2(pi/2 j/(M (C_2 + 1))).

  Note:
    Only c_noise sees the nearest u_j. The network's further output channels are its variance,
    which D does not use.

  Raises:
    UserError: M is no number of noise levels.

  >>> IDDPM(NoiseRange())(jnp.full(1, 1e5)).c_noise.tolist()
  [999.0]
  """

  noise: NoiseRange
  C_1: float = 0.001
  C_2: float = 0.008
  M: int = 1000

  trigflow: ClassVar[None] = None

  def __post_init__(self):
    if isinstance(self.M, bool) or not isinstance(self.M, int) or not 1 <= self.M <= MAX_STEPS:
      raise UserError("M", self.M, f"a number of noise levels, 1 to {MAX_STEPS}")

  @property
  def domain(self) -> Domain:
    """The u_j, which EDM's samplers round their grid to, but for u_M = 0."""
    u = self.levels()[:-1]
    return Domain(float(u[-1]), float(u[0]), tuple(u.tolist()))

  def __call__(self, sigma: Array, train: bool = False) -> Scalings:
    """Return the scalings at sigma [B], > 0."""
    c_noise = (self.M - 1 - self.index(sigma)).astype(sigma.dtype)
    return Scalings(jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(sigma**2 + 1), c_noise)

  def index(self, sigma: Array) -> Array:
    """Return the j of the nearest u_j, int32 [B]."""
    u = jnp.asarray(self.levels(), sigma.dtype)
    return jnp.argmin(jnp.abs(u[None] - sigma[:, None]), axis=1)

  def levels(self) -> np.ndarray:
    """Return u_0 > ... > u_M = 0, float64 [M + 1], on the host."""
    a = np.sin(np.pi / 2 * np.arange(self.M + 1) / (self.M * (self.C_2 + 1))) ** 2
    u = np.zeros(self.M + 1)
    for j in range(self.M, 0, -1):
      u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(a[j - 1] / a[j], self.C_1) - 1)
    return u


def anchored(precond: Precond, train: bool = False) -> bool:
  """Say whether D(x, sigma_min) = x exactly, in training or in evaluation: a consistency model's boundary.

  >>> [anchored(kind(NoiseRange()), train=True) for kind in (EDM, Boundary, ECT)]
  [False, True, False]
  """
  sigma_min = precond.noise.sigma_min
  c_skip, c_out, *_ = (float(scaling[0]) for scaling in precond(jnp.full(1, sigma_min), train=train))
  return abs(c_skip - 1) < 1e-6 and abs(c_out) < 1e-6 * sigma_min


PRECONDS: dict[str, Any] = {  # classes that are a Precond
  "edm": EDM,
  "trigflow": TrigFlow,
  "boundary": Boundary,
  "ect": ECT,
  "vp": VP,
  "ve": VE,
  "iddpm": IDDPM,
}
