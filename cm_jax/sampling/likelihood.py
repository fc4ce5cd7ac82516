"""Exact likelihood of a diffusion model by the instantaneous change of variables.

(Chen et al. 2018; Song et al. 2021, section 4.3.) Along the probability-flow ODE in u = ln sigma,
dx/du = x - D(x, sigma), the log-density changes by minus the divergence:

  log p(x) = log N(x_T; 0, (sigma_max^2 + sigma_data^2) I) + int (dims - tr dD/dx) du

from u = ln sigma_min to ln sigma_max. p is the density of the data with noise of sigma_min. It takes a
denoiser: a consistency model's f is none, and its ODE means nothing.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cm_jax.errors import UserError
from cm_jax.types import Array, Denoiser, NoiseRange

TRACES = ("hutchinson", "exact")
LEVELS = 127.5  # uint8 values per unit of [-1, 1]


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Integrates the ODE with an adaptive solver (diffrax, Tsit5).

  Args:
    noise: sigma_min, sigma_max: the ends; sigma_data: what the prior adds to sigma_max.
    rtol, atol: Of the solver.
    trace: "hutchinson", E[v' (dD/dx) v] over Rademacher v, unbiased; or "exact", one derivative a dimension:
      for small images.
    probes: Of Hutchinson's estimate; drawn once per example and kept along the trajectory, as the solver
      needs a smooth integrand.

  Note:
    The prior is an approximation: noised data are Gaussian at sigma_max up to (mean/sigma_max)^2.

  Raises:
    UserError: A field out of range.
  """

  noise: NoiseRange
  rtol: float = 1e-4
  atol: float = 1e-4
  trace: str = "hutchinson"
  probes: int = 1

  def __post_init__(self):
    if self.trace not in TRACES:
      raise UserError("trace", self.trace, " or ".join(TRACES))
    if self.probes < 1:
      raise UserError("probes", self.probes, "at least 1")
    for field in ("rtol", "atol"):
      if not 0 < getattr(self, field) < 1:
        raise UserError(field, getattr(self, field), "a number in (0, 1)")

  def __call__(self, denoiser: Denoiser, x: Array, key: Array) -> tuple[Array, Array]:
    """Return (log p(x) in nats [B], number of evaluations of D and its derivatives []) for x [B,H,W,C]."""
    import diffrax

    dims, batch = math.prod(x.shape[1:]), x.shape[0]
    probes = jax.random.rademacher(key, (self.probes, *x.shape), x.dtype)

    def rate(u: Any, state: Any, _: Any) -> tuple[Array, Array]:
      x = state[0]
      D_of = lambda x: denoiser(x, jnp.full((batch,), jnp.exp(u), x.dtype))
      D, along = jax.linearize(D_of, x)
      return x - D, dims - self._trace(along, probes, x.shape)

    low, high = math.log(self.noise.sigma_min), math.log(self.noise.sigma_max)
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(rate),
      diffrax.Tsit5(),
      low,
      high,
      None,
      (x, jnp.zeros(batch, x.dtype)),
      stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
      max_steps=4096,
    )
    (end, change) = (leaf[-1] for leaf in solution.ys)
    variance = self.noise.sigma_max**2 + self.noise.sigma_data**2
    squared = jnp.sum(jnp.square(end.reshape(batch, -1)), axis=1)
    prior = -0.5 * squared / variance - 0.5 * dims * math.log(2 * math.pi * variance)
    return prior + change, solution.stats["num_steps"] * 6

  def _trace(self, along, probes: Array, shape: tuple[int, ...]) -> Array:
    """Return tr dD/dx [B] from the linear map v -> (dD/dx) v."""
    inner = lambda v: jnp.sum((v * along(v)).reshape(shape[0], -1), axis=1)
    if self.trace == "hutchinson":
      return jnp.mean(jax.lax.map(inner, probes), axis=0)
    dims = math.prod(shape[1:])

    def basis(j: Array) -> Array:
      v = jnp.zeros(dims, probes.dtype).at[j].set(1.0).reshape(shape[1:])
      return inner(jnp.broadcast_to(v[None], shape))

    return jnp.sum(jax.lax.map(basis, jnp.arange(dims)), axis=0)


def dequantize(image: Array, key: Array) -> Array:
  """Return uint8 images as points of [-1, 1], each uniform in its cell: (v + U[-1/2, 1/2)) / 127.5 - 1.

  >>> x = dequantize(jnp.array([[[[0]]], [[[255]]]], jnp.uint8), jax.random.key(0))
  >>> bool((jnp.abs(x.ravel() - jnp.array([-1.0, 1.0])) <= 0.5 / 127.5).all())
  True
  """
  within_cell = jax.random.uniform(key, image.shape, minval=-0.5, maxval=0.5)
  return (image.astype(jnp.float32) + within_cell) / LEVELS - 1


def bits_per_dim(log_likelihood: Array, dims: int) -> Array:
  """Return bits per dimension of uint8 images: -log2 p / dims + log2(127.5), log p in nats in [-1, 1].

  With uniform dequantisation a lower bound on log P(v) in expectation (Theis et al. 2016), so an upper bound
  on the bits. Over several dequantisations of one image, log of the mean of p instead of one log p is a
  tighter bound (importance weighting).

  >>> round(float(bits_per_dim(jnp.log(jnp.array(0.5)), 1)), 4)  # uniform on [-1, 1]: nearly 8 bits
  7.9944
  """
  return -log_likelihood / (dims * math.log(2)) + math.log2(LEVELS)
