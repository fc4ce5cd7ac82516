"""Bits per dimension of a diffusion model on real images, by its probability-flow ODE."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm_jax.data.companions import companions
from cm_jax.data.sources import class_names, images, labels, validate_source
from cm_jax.data.sources.classes import UNLABELLED, Classes, renumbered
from cm_jax.diffusion.noise import check_seed
from cm_jax.errors import UserError
from cm_jax.evaluation import records
from cm_jax.evaluation.real import open_like_own
from cm_jax.evaluation.records import Record
from cm_jax.models import Model
from cm_jax.notices import progress_bar
from cm_jax.sampling.choose import known_kind
from cm_jax.sampling.generate import local_mesh, replicate
from cm_jax.sampling.likelihood import Likelihood, bits_per_dim, dequantize
from cm_jax.storage.run import RunFolder
from cm_jax.types import Array, Condition, Params, Source


def bits(
  model: Model,
  source: str | None = None,
  num: int | None = None,
  trace: str = "hutchinson",
  probes: int = 1,
  samples: int = 1,
  rtol: float = 1e-4,
  atol: float = 1e-4,
  seed: int = 0,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
  out: epath.PathLike | None = None,
  progress: bool = True,
) -> tuple[Record, np.ndarray]:
  """Measure the bits per dimension of real images under a diffusion model; see `Likelihood`.

  Args:
    model: A diffusion model.
    source: Source of the images; by default those held out of the model's own data if known, else its own
      data.
    num: The first so many; None for all.
    trace, probes, rtol, atol: Of `Likelihood`.
    samples: Dequantisations of each image: several give the importance-weighted bound, tighter than the plain
      one.
    seed: Of the dequantisation and the probes.
    batch_size: Images at a time; the steps of the solver, and so the last digits, depend on it.
    mesh: Devices of this host to spread them over; by default all.
    out: Run folder: the record is appended to its `evaluations.jsonl`.
    progress: Show a bar.

  Returns:
    The record, whose value is the mean, and the bits per dimension of each image, float64 [N].

  Raises:
    UserError: Names the argument: a model of another kind, a source that is not there or has to be given,
      images of another shape, a field of `Likelihood` out of range.
  """
  if known_kind(model) != "diffusion":
    raise UserError("model", model.kind, "a diffusion model: the f of another kind is not a denoiser")
  check_seed(seed)
  likelihood = Likelihood(model.noise, rtol, atol, trace, probes)
  source = source or _own_source(model)
  validate_source(source)
  opened = open_like_own(model, source)
  data, classes = images(opened)[:num], own_labels(model, opened, source)[:num]
  if data.shape[1:] != model.image_shape:
    raise UserError("source", source, f"images of shape {model.image_shape}, not {data.shape[1:]}")
  mesh = mesh or local_mesh()
  is_main = jax.process_index() == 0

  @jax.jit
  def batch(params: Params, image: Array, label: Array, key: Array) -> tuple[Array, Array]:
    dequantize_key, probe_key = jax.random.split(key)
    denoiser = model.preconditioned(params, Condition(label if model.num_classes else None))
    return likelihood(denoiser, dequantize(image, dequantize_key), probe_key)

  params, found, evaluations = replicate(model.params, mesh), [], 0
  keys = jax.random.split(jax.random.key(seed), samples * -(-len(data) // batch_size))
  with progress_bar(
    total=len(data), unit="img", desc="likelihood", disable=not (progress and is_main)
  ) as bar:
    for i, start in enumerate(range(0, len(data), batch_size)):
      rows = [_placed(array[start : start + batch_size], mesh) for array in (data, classes)]
      each = []
      for key in keys[i * samples : (i + 1) * samples]:
        log_p, count = batch(params, *rows, key)
        each.append(np.asarray(log_p, np.float64))
        evaluations = max(evaluations, int(count))
      bound = np.logaddexp.reduce(each, axis=0) - math.log(samples)
      found.append(np.asarray(bits_per_dim(bound, math.prod(model.image_shape))))
      bar.update(len(bound))
  values = np.concatenate(found)
  about = {"name": "likelihood", "trace": trace, "probes": probes, "samples": samples, "rtol": rtol}
  record = Record(
    metric="bits_per_dim",
    value=float(values.mean()),
    n=len(values),
    nfe=evaluations,
    seed=seed,
    sampler=about,
    reference=source,
    **records.origin(model),
    **records.computed_in(model),
    **records.provenance(),
  )
  if out is not None and is_main:
    records.append(RunFolder.at(out).evaluations, [record])
  return record, values


def own_labels(model: Model, source: Source, spec: str) -> np.ndarray:
  """Return the labels of a set in a model's numbers: int32 [N]; says on standard error what they go by.

  Raises:
    UserError: The set has a class that the model has not.
  """
  given = Classes(labels(source), class_names(source))
  if not model.num_classes:
    return given.labels
  say = lambda text: print(f"{spec}: {text}", file=sys.stderr) if jax.process_index() == 0 else None
  if (given.labels == UNLABELLED).all():
    say("no labels: measured without a class")
  elif given.names and not model.class_names:
    say(f"classes {', '.join(given.names)} are taken for 0 to {len(given.names) - 1}: the model names none")
  elif given.names != model.class_names:
    say("classes go by their names" if given.names else "classes go by their numbers: they have no names")
  return renumbered(given, model.class_names, model.num_classes, spec)


def _own_source(model: Model) -> str:
  own = model.provenance.get("source")
  if own is None:
    expected = "real images, such as digits:test: the model does not say its own, or it is code"
    raise UserError("source", "", expected)
  return companions(own).held_out or own


def _placed(rows: np.ndarray, mesh: jax.sharding.Mesh) -> Array:
  """Spread rows over the devices, if they divide: a row more would change the steps of the solver."""
  names = mesh.axis_names if len(rows) % mesh.size == 0 else None
  return jax.device_put(
    jnp.asarray(rows), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(names))
  )
