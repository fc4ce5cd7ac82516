"""Measure samples of models, or images that are there: records, one a metric; and what the samples cost."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cm_jax.data.sources import Framing
from cm_jax.errors import UserError
from cm_jax.evaluation import records
from cm_jax.evaluation.asked import Asked, ask, measured_by
from cm_jax.evaluation.conventions import QUANTISER_WORDS
from cm_jax.evaluation.features import Extractor
from cm_jax.evaluation.given import open_images
from cm_jax.evaluation.partial import EVERY
from cm_jax.evaluation.real import choose_sources, framing_of
from cm_jax.evaluation.recording import Recorder
from cm_jax.evaluation.records import Record
from cm_jax.evaluation.subjects import Sampled, check_model, given_images
from cm_jax.evaluation.timing import in_turns
from cm_jax.models import Model
from cm_jax.sampling.generate import generate, local_mesh, make_generator
from cm_jax.sampling.guidance import check_guidance
from cm_jax.types import Sampler


class Measured(NamedTuple):
  """What `evaluate` returns.

  Attributes:
    made: The records of what was measured now.
    found: Those of what had been measured before in the same way.
    told: How it was measured, a line each.
  """

  made: list[Record]
  found: list[Record]
  told: list[str]


def evaluate(
  model: Model | Iterable[Model],
  samplers: Sequence[Sampler],
  features: Extractor | epath.PathLike,
  reference: str | None = None,
  train_source: str | None = None,
  test_source: str | None = None,
  num: int | None = None,
  seed: int | Sequence[int] = 0,
  guidance: float | None = None,
  batch_size: int = 64,
  mesh: jax.sharding.Mesh | None = None,
  out: epath.PathLike | None = None,
  again: bool = False,
  progress: bool = True,
  metrics: Sequence[str] | None = None,
  convention: str | None = None,
  few: bool = False,
  save_every: float = EVERY,
  nearest: str | None = None,
  **choices: Any,
) -> Measured:
  """Measure models' samples; return the records, and append them to a run as they are made.

  On several hosts every one calls it, draws and measures its part of the samples; the main one writes. Images
  are not kept, but for what a metric needs. What an interruption leaves unfinished lies in `out`, and the
  next call of the same goes on with it.

  Args:
    model: What is measured; or several, such as the averages of a run, each loaded when its turn comes.
    samplers: How it is sampled, such as from `choose_samplers`.
    features: What measures: an `Extractor`, its name in `FEATURES`, or the folder of a classifier.
    reference: What samples are compared with: a source, a file of statistics or images; by default what goes
      with the model's own data (`companions`).
    train_source: Source of the images it may have memorised; by default its own data.
    test_source: Source of real images it has not seen; by default those held out of its own data, if known.
    num: Samples of each sampler, at least 2; None: as the convention has it.
    seed: Sample i depends on (seed, i) only; several are measured one after the other.
    guidance: Scale, for a conditional model; None for none.
    batch_size: Images at a time.
    mesh: Devices of this host to sample on; by default all.
    out: Run folder: `evaluations.jsonl` and grids of the samples go there.
    again: Measure also what the records there say was measured in the same way.
    progress: Show a bar.
    metrics: Names of `METRICS`; None: those usual in the features.
    convention: Whose way of measuring, a key of `CONVENTIONS`; None: EDM's in published features, else "own".
    few: Measure although there are no more samples than features, whose covariance is then singular.
    save_every: Seconds of work that an interruption costs at most.
    nearest: Draw samples beside the training images nearest to them by "pixels" or "features", into `out`;
      None: by pixels, where a metric reads the training images.
    **choices: Other fields of a `Convention`: quantiser, resize, splits, shuffle, subsets, subset_size, ...

  Returns:
    The records made now: of the real images; for each set of samples, of every metric; and of the speed,
    images per second. And those found in the run, of what was measured before.

  Raises:
    UserError: Names the argument: a source that is not there or has to be given, features that cannot be read
      or are of other images, a reference of something else, a guided model without classes, samples that are
      NaN; nothing of it is recorded.
  """
  models = iter([model] if isinstance(model, Model) else model)
  first = next(models)
  check_model(first)
  check_guidance(first, guidance)
  extractor, name, used = measured_by(features, convention, num=num, **choices)
  sources = choose_sources(first, reference, train_source, test_source)
  asked = ask(
    first.image_shape, sources, framing_of(first), extractor, metrics, name, used, few, progress=progress
  )
  sampled = Sampled(guidance, used.quantiser, batch_size, mesh or local_mesh())
  recorder = Recorder(asked, out, again, save_every, progress, nearest)
  seeds = [seed] if isinstance(seed, int) else list(seed)
  for one in itertools.chain([first], models):
    check_model(one)
    pairs = list(itertools.product(samplers, seeds))
    subjects = [sampled(one, sampler, number, recorder.name) for sampler, number in pairs]
    is_new = recorder.record(subjects, asked.num)
    measured = dict.fromkeys(sampler for (sampler, _), new in zip(pairs, is_new, strict=True) if new)
    if measured:
      recorder.add(_speeds(one, list(measured), sampled, seeds[0], asked))
  words = QUANTISER_WORDS[used.quantiser]
  return Measured(recorder.made, recorder.found, [*asked.told(words), *recorder.told()])


def evaluate_images(
  images: str,
  features: Extractor | epath.PathLike,
  reference: str | None = None,
  train_source: str | None = None,
  test_source: str | None = None,
  num: int | None = None,
  framing: Framing | None = None,
  batch_size: int = 256,
  out: epath.PathLike | None = None,
  again: bool = False,
  progress: bool = True,
  metrics: Sequence[str] | None = None,
  convention: str | None = None,
  few: bool = False,
  save_every: float = EVERY,
  nearest: str | None = None,
  **choices: Any,
) -> Measured:
  """Measure images that are there, as `evaluate` does samples.

  Args:
    images: A folder, a .zip, an .npz or .npy of any peer, or a source.
    framing: How images of other sizes become squares, also those of the reference.
    num: The first so many; None: all, or as many as a convention that is named asks for.
    features, reference, train_source, test_source, batch_size, out, again, progress: As of `evaluate`.
    metrics, convention, few, save_every, nearest, **choices: As of `evaluate`.

  Raises:
    UserError: As of `evaluate`; fewer images than asked for.
  """
  extractor, name, used = measured_by(features, convention, num=num, **choices)
  opened = open_images(images, "images", used.quantiser, framing)
  count = used.num if num is not None or convention is not None else len(opened)
  if count > len(opened):
    raise UserError("num", count, f"at most the {len(opened)} images in {images}")
  sources = choose_sources(None, reference, train_source, test_source)
  frames = framing or Framing()
  used = dataclasses.replace(used, num=count)
  asked = ask(opened.shape, sources, frames, extractor, metrics, name, used, few, progress=progress)
  recorder = Recorder(asked, out, again, save_every, progress, nearest)
  subject = given_images(opened, batch_size)
  recorder.record([subject], count)
  told = asked.told(subject.fields["quantiser"])
  if count < len(opened):
    told.append(f"images: the first {count:,} of {len(opened):,}: a folder's come class by class")
  return Measured(recorder.made, recorder.found, [*told, *recorder.told()])


def _speeds(
  model: Model, samplers: Sequence[Sampler], sampled: Sampled, seed: int, asked: Asked
) -> list[Record]:
  """Time samplers in turns; return a record of images per second for each."""
  batch = -(-sampled.batch_size // sampled.mesh.size) * sampled.mesh.size
  draws = {}
  for number, sampler in enumerate(samplers):
    generator = make_generator(model, sampler, sampled.guidance, quantiser=sampled.quantiser)
    draw = functools.partial(
      generate, generator, model.params, range(batch), model.num_classes, batch, sampled.mesh
    )
    draws[str(number)] = functools.partial(_draw, draw, seed)
  seconds = in_turns(draws, rounds=7, least_seconds=0.05)
  made = []
  for number, sampler in enumerate(samplers):
    rate = float(batch / np.median(seconds[str(number)]))
    speed = {"metric": "images_per_second", "value": rate, "n": batch, "images_per_second": rate}
    made.append(
      Record(**{**asked.fields, **sampled.fields(model, sampler, seed), **records.provenance(), **speed})
    )
  return made


def _draw(batches: Callable[..., Iterator[np.ndarray]], seed: int) -> None:
  collections.deque(batches(seed=seed), maxlen=0)
