"""Multistep consistency sampling: a frozen dataclass over noise levels that turns a Denoiser into images.

`sampler(denoiser, noise, shape)` with `noise(k, shape)` the k-th standard normal draw; the caller jits, so a
whole sampler is one program. The state has the type of the noise.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp

from cm_jax.errors import UserError
from cm_jax.types import RENOISE, Array, Denoiser, Noise, NoiseRange

SLACK = 1e-3  # relative: noise levels so little above sigma_max are sigma_max


def check_sigmas(sigmas: Sequence[float], noise: NoiseRange, field: str = "sigmas") -> tuple[float, ...]:
  """Return sigmas as floats if they are a valid list for multistep sampling.

  A level no more than 0.1 % above sigma_max is sigma_max: sCM's t_max, 1.56455, is that of 80.046.

  Args:
    sigmas: Noise levels.
    noise: Their range.
    field: What an error calls them.

  Raises:
    UserError: Empty, not strictly descending, or outside (sigma_min, sigma_max].

  >>> check_sigmas((80, 0.8), NoiseRange())
  (80.0, 0.8)
  >>> check_sigmas(trigflow_sigmas((1.56455, 1.1), 0.5), NoiseRange())[0]
  80.0
  """
  low, high = f"{noise.sigma_min:g}", f"{noise.sigma_max:g}"
  expected = f"one or more descending noise levels in ({low}, {high}], such as {high},0.8"
  if isinstance(sigmas, str):
    raise UserError(field, sigmas, expected)
  try:
    values = tuple(float(sigma) for sigma in sigmas)
  except (TypeError, ValueError):
    raise UserError(field, sigmas, expected) from None
  given = ",".join(f"{value:g}" for value in values)
  top = noise.sigma_max
  values = tuple(top if top < value <= top * (1 + SLACK) else value for value in values)
  in_range = all(math.isfinite(sigma) and noise.sigma_min < sigma <= noise.sigma_max for sigma in values)
  if not values or not in_range or any(a <= b for a, b in itertools.pairwise(values)):
    raise UserError(field, given, expected)
  return values


@dataclasses.dataclass(frozen=True)
class Multistep:
  """Multistep consistency sampling (CM Alg. 1); with one noise level, one-step sampling.

  x = f(sigma_1 z_0, sigma_1); for each further sigma:
  x = f(clip(x) + sqrt(sigma^2 - sigma_min^2) z_k, sigma).

  Args:
    noise: For sigma_min and the valid range.
    sigmas: Descending noise levels, the first normally sigma_max.
    clip: Clip x to [-1, 1] before adding noise again, as both official codes do; switch it off for latents.
    renoise: One of `RENOISE`. "cm" adds sqrt(sigma^2 - sigma_min^2) z as above; "ect" adds sigma z, as ECT
      and sCM do, which do not clip.

  Note:
    sCM's sampler, x' = cos t x + sin t sigma_data z at angle t, is "ect" without clipping at
    sigma = sigma_data tan t (`trigflow_sigmas`).

  Raises:
    UserError: Noise levels out of range or not descending.

  >>> sampler = Multistep(NoiseRange(), (80.0, 0.8))
  >>> sampler.nfe
  2
  >>> x = sampler(lambda x, sigma: x / sigma[0], lambda k, shape: jnp.ones(shape), (1, 1, 1, 1))
  >>> round(x.item(), 3)  # (1 + 0.8) / 0.8
  2.25
  """

  noise: NoiseRange
  sigmas: tuple[float, ...] = (80.0,)
  clip: bool = True
  renoise: str = "cm"

  def __post_init__(self):
    if self.renoise not in RENOISE:
      raise UserError("renoise", self.renoise, " or ".join(RENOISE))
    object.__setattr__(self, "sigmas", check_sigmas(self.sigmas, self.noise))

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return len(self.sigmas)

  def __call__(self, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]) -> Array:
    """Return samples of `shape` [B,H,W,C]."""
    return self.at(self.sigmas, denoiser, noise, shape)

  def at(
    self, sigmas: Sequence[float] | Array, denoiser: Denoiser, noise: Noise, shape: tuple[int, ...]
  ) -> Array:
    """Return samples at other noise levels, which may be traced, so that a search compiles once."""
    return multistep(denoiser, noise, shape, sigmas, self.noise.sigma_min, self.clip, self.renoise)


def multistep(
  denoiser: Denoiser,
  noise: Noise,
  shape: tuple[int, ...],
  sigmas: Sequence[float] | Array,
  sigma_min: float,
  clip: bool = True,
  renoise: str = "cm",
) -> Array:
  """Return samples at noise levels in any order, which may be traced; see `Multistep`."""
  level = lambda sigma: jnp.full(shape[:1], sigma)
  x = denoiser(sigmas[0] * noise(0, shape), level(sigmas[0]))
  for k in range(1, len(sigmas)):
    if clip:
      x = jnp.clip(x, -1, 1)
    added = jnp.sqrt(sigmas[k] ** 2 - sigma_min**2) if renoise == "cm" else sigmas[k]
    x = denoiser(x + added * noise(k, shape), level(sigmas[k]))
  return x


def trigflow_sigmas(angles: tuple[float, ...], sigma_data: float) -> tuple[float, ...]:
  """Return the noise levels of TrigFlow's angles: sigma = sigma_data tan t (sCM section 3).

  >>> [round(sigma, 3) for sigma in trigflow_sigmas((1.56455, 1.1), 0.5)]
  [80.046, 0.982]
  """
  return tuple(sigma_data * math.tan(angle) for angle in angles)
