"""Denoising score matching: what trains a diffusion teacher. EDM's,
VP's and VE's losses differ in the levels and the weight only."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cm_jax.diffusion.levels import Levels, Lognormal
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.weights import Weight, karras
from cm_jax.errors import UserError
from cm_jax.networks.magnitude import normalize_weights
from cm_jax.networks.weighting import LogVariance
from cm_jax.types import (
  Array,
  Batch,
  Condition,
  Context,
  Needs,
  NoiseRange,
  Objective,
  ObjectiveOutput,
  Params,
)


class DenoisingDraws(NamedTuple):
  """sigma [B]; z [B,H,W,C] standard normal; drop bool [B], whose labels are hidden (None: nobody's);
  dropout key."""

  sigma: Array
  z: Array
  drop: Array | None
  key: Array


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
  """E[lambda(sigma) ||D(x + sigma z, sigma) - x||^2] (EDM eq. 2).

  | loss | levels | weight lambda |
  |---|---|---|
  | EDM (EDM table 1) | lognormal | karras: (sigma^2 + sigma_data^2)/(sigma sigma_data)^2 = 1/c_out^2 |
  | VP (EDM table 1, column VP) | vp | snr: 1/sigma^2 |
  | VE (EDM table 1, column VE) | ve | snr: 1/sigma^2 |

  Args:
    noise: For sigma_data.
    levels: Distribution of sigma.
    weight: lambda, as a function (t, r, sigma_data) of t = sigma.
    reduction: "sum" over pixels as EDM, EDM2 and jcm, or "mean" as OpenAI; it matters for clipping, Adam's
      eps and the logged loss.
    uncertainty: Learn the log-variance u(sigma) of the loss: L/e^u + u (EDM2 eq. 15), which makes the loss'
      magnitude the same at all levels. With the reduction "sum" all of it, u too, is summed over the pixels,
      as in EDM2's code: Adam's eps is then as small beside the gradients as theirs.
    label_dropout: Probability of hiding an example's label,
      so that one network is conditional and unconditional: for guidance.

  Raises:
    UserError: A field out of range.
  """

  trains: ClassVar[str] = "diffusion"

  noise: NoiseRange
  levels: Levels = dataclasses.field(default_factory=Lognormal)
  weight: Weight = karras
  reduction: str = "sum"
  uncertainty: bool = False
  label_dropout: float = 0.0

  def __post_init__(self):
    if self.reduction not in ("sum", "mean"):
      raise UserError("reduction", self.reduction, "sum or mean")
    if not 0 <= self.label_dropout < 1:
      raise UserError("label_dropout", self.label_dropout, "a probability in [0, 1)")

  @property
  def needs(self) -> Needs:
    """The head of u, with uncertainty, whose weight EDM2 normalises as those of its network."""
    if not self.uncertainty:
      return Needs()
    draw = lambda key: LogVariance().init(key, jnp.zeros(1))["params"]
    return Needs(weighting=draw, weighting_projection=normalize_weights)

  def draw(self, key: Array, batch: Batch, step: Array) -> DenoisingDraws:
    """Draw noise levels, noise and the labels to hide for a batch."""
    x = batch["image"]
    sigma_key, z_key, drop_key, dropout_key = jax.random.split(key, 4)
    drop = jax.random.bernoulli(drop_key, self.label_dropout, x.shape[:1]) if self.label_dropout else None
    return DenoisingDraws(
      self.levels(sigma_key, x.shape[0]), jax.random.normal(z_key, x.shape, x.dtype), drop, dropout_key
    )

  def loss(
    self, params: Params, context: Context, batch: Batch, draws: DenoisingDraws, step: Array
  ) -> ObjectiveOutput:
    """Return the weighted squared error for given draws; `batch["image"]` is float in [-1, 1]."""
    x, (sigma, z, drop, key) = batch["image"], draws
    condition = Condition.of(batch)
    if condition.label is not None and drop is not None:
      condition = condition._replace(label=jnp.where(drop, -1, condition.label))
    denoise = context.student(params, condition, key)
    error = jnp.square(denoise(x + append_dims(sigma, x) * z, sigma) - x).reshape(x.shape[0], -1)
    reduced = error.sum(axis=1) if self.reduction == "sum" else error.mean(axis=1)
    per_example = self.weight(sigma, jnp.zeros_like(sigma), self.noise.sigma_data) * reduced
    metrics = {}
    if self.uncertainty:
      metrics["weighted_error"] = per_example.mean()
      u = jnp.asarray(LogVariance().apply({"params": params["weighting"]}, jnp.log(sigma) / 4))
      per_example = per_example / jnp.exp(u) + (u * error.shape[1] if self.reduction == "sum" else u)
    return ObjectiveOutput(per_example.mean(), per_example, sigma, metrics)
