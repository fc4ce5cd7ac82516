"""What can be measured: samples of a model, drawn while they are measured, and images that are there."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.diffusion.pixels import QUANTISERS, is_latent
from cm_jax.errors import UserError
from cm_jax.evaluation import records
from cm_jax.evaluation.conventions import GIVEN, QUANTISER_WORDS
from cm_jax.evaluation.given import Images
from cm_jax.models import Model
from cm_jax.sampling.choose import sampler_name, unusual
from cm_jax.sampling.generate import Generator as Sampling
from cm_jax.sampling.generate import generate, make_generator
from cm_jax.sampling.labels import class_titles
from cm_jax.types import Array, Params, Sampler


class Subject(NamedTuple):
  """A set of images to measure.

  Attributes:
    title: Of its progress bar.
    fields: Of its records: what they are images of.
    identity: Returns what else tells it from another, for what is left of an interrupted measurement.
    shape: (H, W, C).
    batches: (start, stop) -> images start to stop - 1, uint8, in batches.
    titles: What the first so many images are called in a picture, [] for nothing.
  """

  title: str
  fields: Mapping[str, Any]
  identity: Callable[[], Mapping[str, Any]]
  shape: tuple[int, ...]
  batches: Callable[[int, int], Generator[np.ndarray, None, None]]
  titles: Callable[[int], list[str]] = lambda count: []


def described(sampler: Sampler, guidance: float | None) -> dict[str, Any]:
  """Return how records name a sampler, and the guidance if there is some."""
  given = {} if guidance is None else {"guidance": guidance}
  about = {"name": sampler_name(sampler), **unusual(sampler), **given}
  return {"nfe": sampler.nfe, "sigmas": sampler.sigmas, "sampler": about, "guidance": guidance}


def check_model(model: Model) -> None:
  """Check that a model makes images.

  Raises:
    UserError: It makes latents.
  """
  if is_latent(model.image_shape):
    expected = "a model of images: decode its latents, and give the images"
    raise UserError("model", f"of latents {list(model.image_shape)}", expected)


@dataclasses.dataclass(frozen=True)
class Sampled:
  """How a model's samples are drawn.

  Args:
    guidance: Scale; None for none.
    quantiser: A key of `QUANTISERS`.
    batch_size: Images at a time.
    mesh: Devices of this host.
  """

  guidance: float | None
  quantiser: str
  batch_size: int
  mesh: jax.sharding.Mesh

  def fields(self, model: Model, sampler: Sampler, seed: int) -> dict[str, Any]:
    """Return what records say of the samples."""
    return {
      **records.origin(model),
      **described(sampler, self.guidance),
      **records.computed_in(model),
      "seed": seed,
      "quantiser": QUANTISER_WORDS[self.quantiser],
    }

  def __call__(self, model: Model, sampler: Sampler, seed: int, where: str) -> Subject:
    """Return the samples of a model as what is measured; `where` is the run's name, for the bar."""
    generator = _told(make_generator(model, sampler, self.guidance, quantiser=None), self.quantiser)
    average, step = (model.provenance.get(key) for key in ("average", "step"))
    named = [where, average or "", "" if step is None else f"step {step}", f"{sampler.nfe} NFE"]
    title = ", ".join(part for part in (*named, f"seed {seed}" if seed else "") if part)

    def identity() -> dict[str, Any]:
      drawn = {"batch": self.batch_size, "devices": self.mesh.size, "sampler": repr(sampler)}
      return {**drawn, "weights": weights_hash(model.params)}

    def batches(start: int, stop: int) -> Generator[np.ndarray, None, None]:
      numbers, classes = range(start, stop), model.num_classes
      for images in generate(
        generator, model.params, numbers, classes, self.batch_size, self.mesh, seed=seed
      ):
        yield _whole_numbers(images, start)
        start += len(images)

    titles = functools.partial(class_titles, model.num_classes, model.class_names)
    return Subject(title, self.fields(model, sampler, seed), identity, model.image_shape, batches, titles)


def given_images(images: Images, batch_size: int) -> Subject:
  """Return images that are there as what is measured."""
  quantiser = GIVEN if images.quantiser is None else QUANTISER_WORDS[images.quantiser]
  fields = {"samples": images.spec, "quantiser": quantiser, "matmul_precision": "highest"}
  batches = lambda start, stop: images.batches(start, stop, batch_size)
  return Subject(images.spec, fields, lambda: {"hash": images.fingerprint}, images.shape, batches)


def weights_hash(params: Params) -> str:
  """Return the sha256 of weights."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def _told(generator: Sampling, quantiser: str) -> Sampling:
  """Return a generator whose images are whole numbers, or NaN where x was no number, float32."""

  @jax.jit
  def told(params: Params, seed: Array, indices: Array, label: Array | None) -> Array:
    x = generator(params, seed, indices, label)
    return jnp.where(jnp.isfinite(x), QUANTISERS[quantiser](x).astype(jnp.float32), jnp.nan)

  return told


def _whole_numbers(images: np.ndarray, start: int) -> np.ndarray:
  bad = np.isnan(images).any(axis=(1, 2, 3))
  if bad.any():
    number = start + int(bad.argmax())
    raise UserError("model", f"sample {number} has NaN", "a model whose samples are numbers")
  return images.astype(np.uint8)
