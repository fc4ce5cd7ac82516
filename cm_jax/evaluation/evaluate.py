"""Measure the samples of a model: a record a metric and sampler; and what the samples cost."""

import collections
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation import records
from cm_jax.evaluation.features import Extractor, load_features
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.metrics.base import Samples
from cm_jax.evaluation.real import RealData, check_images, choose_sources, data_name
from cm_jax.evaluation.records import Record
from cm_jax.evaluation.timing import in_turns
from cm_jax.sampling.choose import sampler_name, unusual
from cm_jax.sampling.generate import generate, generate_all, local_mesh, make_generator
from cm_jax.sampling.guidance import check_guidance
from cm_jax.storage.pictures import save_grid
from cm_jax.storage.run import RunFolder
from cm_jax.types import Model, Sampler

QUANTISER = "clip(floor(127.5 x + 128), 0, 255)"
GRID_IMAGES = 100
# What must agree, beside the metric, for a measurement to count as made before.
SAME = (
  *("n", "nfe", "sigmas", "sampler", "seed", "reference", "features_hash"),
  *("step", "average", "config_sha256"),
)


class Measured(NamedTuple):
  """What `evaluate` returns.

  Attributes:
    made: The records of what was measured now.
    found: Those of what had been measured before in the same way.
  """

  made: list[Record]
  found: list[Record]


def evaluate(
  model: Model,
  samplers: Sequence[Sampler],
  features: Extractor | epath.PathLike,
  reference: str | None = None,
  train_source: str | None = None,
  test_source: str | None = None,
  num: int = 5000,
  seed: int = 0,
  guidance: float | None = None,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
  out: epath.PathLike | None = None,
  again: bool = False,
  progress: bool = True,
) -> Measured:
  """Measure a model's samples by every metric of `METRICS`; return the records, and append them to a run.

  On several hosts every one calls it and draws its part of the samples; the main one writes.

  Args:
    model: What is measured.
    samplers: How it is sampled, such as from `choose_samplers`.
    features: What measures: of `train_features`, or the folder where they are stored.
    reference: Source of the images that samples are compared with; by default what goes with the model's own
      data (`companions`).
    train_source: Source of the images it may have memorised; by default its own data.
    test_source: Source of real images it has not seen; by default those held out of its own data, if known.
    num: Samples of each sampler, at least 2.
    seed: Sample i depends on (seed, i) only.
    guidance: Scale, for a conditional model; None for none.
    batch_size: Images at a time.
    mesh: Devices of this host to sample on; by default all.
    out: Run folder: `evaluations.jsonl` and grids of the samples go there.
    again: Measure also what the records there say was measured in the same way.
    progress: Show a bar.

  Returns:
    The records made now: of the real images; for each sampler, of every metric; and of the speed, images per
    second. And those found in the run, of what was measured before.

  Raises:
    UserError: Names the argument: a source that is not there or has to be given, features that cannot be
      read or are of other images, a guided model without classes.
  """
  from tqdm import tqdm

  sources = choose_sources(model, reference, train_source, test_source)
  if num < 2:
    raise UserError("num", num, "at least 2")
  check_guidance(model, guidance)
  measure = load_features(features) if isinstance(features, (str, os.PathLike)) else features
  check_images(
    model, measure, reference=sources.reference, train_source=sources.train, test_source=sources.held_out
  )
  common = {**records.origin(model), "features_hash": measure.hash}
  about = {"seed": seed, "quantiser": QUANTISER, **records.computed_in(model)}
  wanted = [(sampler, {**common, **described(sampler, guidance), **about}) for sampler in samplers]
  run, found = None if out is None else RunFolder.at(out), list[Record]()
  if run is not None and not again and run.evaluations.exists():
    before = records.read(run.evaluations)
    asked = {"n": num, "reference": sources.reference}
    earlier = [_earlier(before, {**asked, **fields}) for _, fields in wanted]
    wanted = [pair for pair, known in zip(wanted, earlier, strict=True) if not known]
    found = [record for known in earlier for record in known]
  if not wanted:
    return Measured([], found)
  where, real = records.provenance(), RealData.read(sources, measure, model)
  mesh, is_main = mesh or local_mesh(), jax.process_index() == 0
  batch = -(-batch_size // mesh.size) * mesh.size
  written = real_records(real, {**common, **where})
  draws: dict[str, Callable[[], None]] = {}
  for number, (sampler, fields) in enumerate(wanted):
    generator = make_generator(model, sampler, guidance)
    title = f"{run.path.name}, {sampler.nfe} NFE" if run else f"{sampler.nfe} NFE"
    mine = -(-num // jax.process_count())
    with tqdm(total=mine, unit="img", desc=title, disable=not (progress and is_main)) as bar:
      images = generate_all(generator, model, num, batch_size, mesh, seed, bar.update)
    written += sample_records(images, real, {**fields, **where})
    if run is not None and is_main:
      save_grid(images[:GRID_IMAGES], run.grid_of_nfe(sampler.nfe))
    one = functools.partial(generate, generator, model.params, range(batch), model.num_classes, batch, mesh)
    draws[str(number)] = functools.partial(_draw, one, seed)
  seconds = in_turns(draws, rounds=7, least_seconds=0.05)
  for number, (_, fields) in enumerate(wanted):
    rate = float(batch / np.median(seconds[str(number)]))
    speed = {"metric": "images_per_second", "value": rate, "n": batch, "images_per_second": rate}
    written.append(Record(**{**fields, **where, **speed}))
  if run is not None and is_main:
    records.append(run.evaluations, written)
  return Measured(written, found)


def _earlier(before: Sequence[Record], asked: Mapping[str, Any]) -> list[Record]:
  """Return the records of a sampler that was measured by every metric as is asked for, the newest of each;
  with those of the real images. None if one is missing."""
  data = data_name(asked["reference"])
  named = {metric.record.format(data=data): metric for metric in METRICS.values()}
  same = {record.metric: record for record in before if _key(vars(record)) == _key(asked)}
  if not named.keys() <= same.keys():
    return []
  by = lambda record: (record.reference, record.features_hash)
  baselines = [f"{name}_{metric.baseline}" for name, metric in named.items()]
  real = {r.metric: r for r in before if r.metric in baselines and by(r) == by(same[next(iter(named))])}
  speeds = [
    r
    for r in before
    if r.metric == "images_per_second" and (r.nfe, r.sigmas) == (asked["nfe"], asked["sigmas"])
  ]
  return [*real.values(), *(same[name] for name in named), *speeds[-1:]]


def described(sampler: Sampler, guidance: float | None) -> dict[str, Any]:
  """Return how records name a sampler, and the guidance if there is some."""
  given = {} if guidance is None else {"guidance": guidance}
  about = {"name": sampler_name(sampler), **unusual(sampler), **given}
  return {"nfe": sampler.nfe, "sigmas": sampler.sigmas, "sampler": about}


def real_records(real: RealData, common: Mapping[str, Any]) -> list[Record]:
  """Measure real images by the metrics that say something of them; `common`: more fields of the records."""
  found = []
  for metric in METRICS.values():
    measured = metric.of_real(real) if metric.baseline else None
    if measured is not None:
      name = f"{metric.record.format(data=data_name(real.name))}_{metric.baseline}"
      found.append(Record(metric=name, value=measured[0], n=measured[1], reference=real.name, **common))
  return found


def sample_records(images: np.ndarray, real: RealData, common: Mapping[str, Any]) -> list[Record]:
  """Measure samples, uint8 [N,H,W,C], by every metric; `common`: more fields of the records."""
  found = real.features(images, ("logits",))
  assert found.logits is not None
  samples = Samples(images, found.features, found.logits)
  shared = {"n": len(images), "reference": real.name, **common}
  named = {metric.record.format(data=data_name(real.name)): metric for metric in METRICS.values()}
  return [Record(metric=name, value=metric.value(samples, real), **shared) for name, metric in named.items()]


def _draw(batches: Callable[..., Iterator[np.ndarray]], seed: int) -> None:
  collections.deque(batches(seed=seed), maxlen=0)


def _key(fields: Mapping[str, Any]) -> tuple[str, ...]:
  return tuple(str(fields[name]) for name in SAME)
