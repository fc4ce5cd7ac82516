"""The one place where a Denoiser is made: a network with its preconditioning, its raw F, and its flow map."""

import dataclasses

import jax.numpy as jnp

from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.precision import computing_in
from cm_jax.types import Array, Condition, Denoiser, FlowMap, Net, Params, Precond

NOTHING = Condition()


@dataclasses.dataclass(frozen=True)
class Preconditioned:
  """A network without its weights: `preconditioned(params, condition, key) -> Denoiser`, EDM eq. 7.

  >>> from cm_jax.diffusion.precond import EDM
  >>> from cm_jax.types import NoiseRange
  >>> net = lambda params, x, c_noise, condition, key=None: params * x
  >>> denoise = Preconditioned(net, EDM(NoiseRange(sigma_data=1.0)))({"net": 0.0})
  >>> denoise(jnp.full((1, 1, 1, 1), 4.0), jnp.ones(1)).item()
  2.0
  """

  net: Net
  precond: Precond
  matmul_precision: str = "default"  # of the network's float32 products, whoever evaluates it

  def __call__(self, params: Params, condition: Condition = NOTHING, key: Array | None = None) -> Denoiser:
    """Bind params and a condition; `key=None` is evaluation mode,
    in which ECT's scalings are the boundary's."""

    def denoise(x: Array, sigma: Array) -> Array:
      c_skip, c_out, c_in, c_noise = self.precond(sigma, train=key is not None)
      F = self.raw(params, append_dims(c_in, x) * x, c_noise, condition, key)
      return append_dims(c_skip, x) * x + append_dims(c_out, x) * F

    return denoise

  def flow_map(self, params: Params, condition: Condition = NOTHING, key: Array | None = None) -> FlowMap:
    """Bind params and a condition but for the second time:
    g(x, sigma, s), for a network with `second_time`."""
    return lambda x, sigma, s: self(params, condition._replace(until=s), key)(x, sigma)

  def raw(
    self, params: Params, x: Array, c_noise: Array, condition: Condition = NOTHING, key: Array | None = None
  ) -> Array:
    """Return F [B,H,W,C] of a scaled x, in x's type; a learned variance,
    which follows in iDDPM's networks, is cut off.

    The network is told s through the angle arctan(s / sigma_data), in [0, pi/2):
    finite at s = 0, where ln s is not.
    """
    if condition.until is not None:
      condition = condition._replace(until=jnp.arctan(condition.until / self.precond.noise.sigma_data))
    with computing_in(self.matmul_precision):
      F = self.net(params["net"], x, c_noise, condition, key=key)
    return F[..., : x.shape[-1]].astype(x.dtype)
