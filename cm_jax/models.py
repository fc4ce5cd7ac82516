"""What is made of the types: a Model (weights ready to sample), a Method (what a paper says of the maths), an
Experiment (a Method on data and devices)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cm_jax.errors import UserError
from cm_jax.types import (
  Array,
  Batch,
  Condition,
  Denoiser,
  NoiseRange,
  Objective,
  Params,
  Preconditioned,
  Sampler,
  Schedule,
  Source,
  parameter_count,
)


def described_images(shape: tuple[int, ...], num_classes: int) -> str:
  """Say of what images a model is.

  >>> described_images((32, 32, 3), 10), described_images((8, 8, 1), 0)
  ('32x32x3 images of 10 classes', '8x8x1 images without classes')
  """
  return f"{'x'.join(map(str, shape))} images {f'of {num_classes}' if num_classes else 'without'} classes"


@dataclasses.dataclass(frozen=True)
class Model:
  """A network with weights, ready to bind: a teacher, a checkpoint to sample, an imported file.

  Attributes:
    preconditioned: `preconditioned(params, condition) -> Denoiser`.
    params: `{"net": ...}`.
    kind: One of `KINDS`; None where a file from before there were kinds does not say it.
    noise: Its own noise range, which may differ from the student's.
    image_shape: (H, W, C).
    num_classes: 0 if unconditional.
    network, precond: The config dicts it was built from.
    sigmas_by_nfe: Tuned noise levels by number of network evaluations, as far as known.
    sampler: The run's own `config.sampler`; None for a weights folder.
    provenance: path, step, average, config_sha256, dataset_fingerprint, source, framing (how its images were
      cropped):
      what a record states about it; None where unknown. A source that is code (python:) is left out.
    class_names: In the order of the classes' numbers; () where they have none.
    guidable: Whether it was trained without its label too, as guidance needs; None where unknown.
    matmul_precision: One of `PRECISIONS`: in what its float32 products are computed, as they were trained in.
    draw: What `sample` calls: `cm_jax.sample`, given by who makes the model, since sampling is a layer above.
    clip, renoise: Of its own sampler: whether x (multistep) or every D (others) is clipped to [-1, 1], and
      how multistep sampling adds noise again. None where nothing says it; renoise also for other samplers.
  """

  preconditioned: Preconditioned
  params: Params
  kind: str | None
  noise: NoiseRange
  image_shape: tuple[int, int, int]
  num_classes: int
  network: Mapping[str, Any]
  precond: Mapping[str, Any]
  sigmas_by_nfe: Mapping[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  sampler: Mapping[str, Any] | None = None
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  class_names: tuple[str, ...] = ()
  guidable: bool | None = None
  matmul_precision: str = "default"
  draw: Callable[..., np.ndarray] | None = dataclasses.field(default=None, repr=False, compare=False)
  clip: bool | None = None
  renoise: str | None = None

  def denoiser(self, label: Array | int | None = None) -> Denoiser:
    """Bind the stored weights in evaluation mode: D(x [B,H,W,C], sigma), sigma and label one for all or [B].

    Raises:
      UserError: Called with images of another shape or type, or as many noise levels as there are not images.
    """

    def denoise(x: Array, sigma: Array | float) -> Array:
      x = jnp.asarray(x)
      if x.ndim != 4 or x.shape[1:] != self.image_shape:
        raise UserError("x", x.shape, f"images (B, {', '.join(map(str, self.image_shape))})")
      if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError("x", str(x.dtype), "floats: images in [-1, 1], and noise of their level sigma")
      condition = Condition(None if label is None else _each("label", label, len(x), jnp.int32))
      return self.preconditioned(self.params, condition)(x, _each("sigma", sigma, len(x), x.dtype))

    return denoise

  def sample(self, num: int = 16, **how: Any) -> np.ndarray:
    """Return uint8 images [num,H,W,C] (latents: float32); see `cm_jax.sample`, which takes the same."""
    if self.draw is None:
      raise UserError(
        "draw", "None", "cm_jax.sample, as load_model gives it: dataclasses.replace(model, draw=...)"
      )
    return self.draw(self, num, **how)

  def __repr__(self) -> str:
    noise, about = self.noise, self.provenance
    known = [f"{key} {about[key]}" for key in ("step", "average") if about.get(key) is not None]
    levels = [f"{n}: {', '.join(f'{s:g}' for s in sigmas)}" for n, sigmas in self.sigmas_by_nfe.items()]
    return "\n".join(
      [
        f"Model: {self.kind or 'of unknown kind'}, {described_images(self.image_shape, self.num_classes)}",
        f"  network: {_named(self.network)}, {parameter_count(self.params):,} parameters",
        f"  precond: {_named(self.precond)}, sigma {noise.sigma_min:g} to {noise.sigma_max:g}",
        f"  sampler: {'usual for its kind' if self.sampler is None else _named(self.sampler)}"
        + (f"; tuned levels by NFE {{{'; '.join(levels)}}}" if levels else ""),
        f"  from: {', '.join([str(about.get('path') or 'no file'), *known])}",
      ]
    )


def _each(field: str, value: Any, count: int, dtype: Any) -> Array:
  """Return a value [B] of one number for all, or of one each, in any shape."""
  given = jnp.asarray(value, dtype)
  if given.size not in (1, count):
    raise UserError(field, given.shape, f"one number, or one for each of the {count} images")
  return jnp.broadcast_to(given.ravel(), (count,))


def _named(section: Mapping[str, Any] | str) -> str:
  return section if isinstance(section, str) else str(section.get("name"))


def drops_labels(config: Any) -> bool:
  """Say whether a complete config trains a network with and without its label: what guidance needs."""
  return any(config[section].get("label_dropout") for section in ("network", "objective"))


@dataclasses.dataclass(frozen=True)
class Method:
  """What a config says of the maths, for images of a shape: no file, no device, no data; `assemble` makes it.

  Attributes:
    config: Complete: every default is written out.
    num_steps: Where training stops: at the run's end, or earlier.
    init: key -> params, `{"net": ..., "weighting": ...}`.
    preprocess: (batch, key) -> batch, on the device in every step.
    apart: params -> a tree of bool, which of them the optimiser must be given on their own; None: every one.
  """

  config: ml_collections.FrozenConfigDict
  noise: NoiseRange
  image_shape: tuple[int, int, int]
  num_classes: int
  num_steps: int
  init: Callable[[Array], Params]
  student: Preconditioned
  objective: Objective
  optimizer: optax.GradientTransformationExtraArgs
  learning_rate: Schedule
  preprocess: Callable[[Batch, Array], dict[str, Array]]
  sampler: Sampler
  apart: Callable[[Params], Any] | None = None

  def parameters(self) -> int:
    """Return how many parameters are trained, those of the loss's own head among them."""
    return parameter_count(jax.eval_shape(lambda: self.init(jax.random.key(0))))

  def __repr__(self) -> str:
    config = self.config
    return "\n".join(
      [
        f"Method: {config.objective.name}, {described_images(self.image_shape, self.num_classes)}",
        f"  trains: {self.objective.trains}, {_named(config.network)}, {self.parameters():,} parameters",
        f"  precond: {_named(config.precond)}, sigma {self.noise.sigma_min:g} to {self.noise.sigma_max:g}",
        f"  optimizer: {_named(config.optimizer)}, learning rate {config.optimizer.learning_rate:g}",
        f"  length: {self.num_steps:,} steps of {config.batch_size:,} images",
      ]
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A Method placed on data, devices and teachers: what `build` makes of a config.

  `config` is the Method's, with what it takes from data and teachers filled in: what a run stores.
  Building it again gives an equal Experiment.

  Attributes:
    check_resume: Given a stored config and where it lies, raises a UserError unless it is this run's.
    cautions: Lines to be told before it begins.
    draw: As of `Model`.
  """

  config: ml_collections.FrozenConfigDict
  method: Method
  source: Source
  mesh: jax.sharding.Mesh
  teacher: Model | None = None
  initial_params: Params | None = None
  distance_params: Params | None = None
  check_resume: Callable[[Mapping[str, Any], str], None] = lambda stored, where: None
  cautions: tuple[str, ...] = ()
  draw: Callable[..., np.ndarray] | None = dataclasses.field(default=None, repr=False, compare=False)

  def model(self, params: Params) -> Model:
    """Return params of this run as a model: what is sampled while it trains."""
    config, method = self.config, self.method
    return Model(
      preconditioned=method.student,
      params=params,
      kind=method.objective.trains,
      noise=method.noise,
      image_shape=method.image_shape,
      num_classes=method.num_classes,
      network=config.network.to_dict(),
      precond=config.precond.to_dict(),
      sigmas_by_nfe={int(nfe): tuple(levels) for nfe, levels in config.sigmas_by_nfe.items()},
      sampler=config.sampler.to_dict(),
      class_names=tuple(config.data.class_names),
      guidable=drops_labels(config),
      matmul_precision=config.matmul_precision,
      draw=self.draw,
      clip=config.sampler.get("clip"),
      renoise=config.sampler.get("renoise"),
    )

  def __repr__(self) -> str:
    data = f"  data: {self.config.data.source}, {len(self.source):,} images, on {self.mesh.size} device(s)"
    return "\n".join([repr(self.method).replace("Method", "Experiment", 1), data])
