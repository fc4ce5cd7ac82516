"""The real images that samples are compared with."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cm_jax import meetings
from cm_jax.data.companions import companions
from cm_jax.data.sources import SOURCES, Framing, images, open_source, validate_source
from cm_jax.errors import UserError, renamed
from cm_jax.evaluation import hosts
from cm_jax.evaluation.collecting import MOMENTS, Collected, collect
from cm_jax.evaluation.features import Extractor
from cm_jax.evaluation.moments import Moments
from cm_jax.evaluation.references import (
  Reference,
  Statistics,
  check_reference,
  read_statistics,
  save_statistics,
)
from cm_jax.models import Model
from cm_jax.storage.downloads import NoCache, cache_folder
from cm_jax.types import Source


class Sources(NamedTuple):
  """Where the real images come from.

  Attributes:
    reference: What samples are compared with.
    train: What the model may have memorised; None where nothing is known of it.
    held_out: What it has not seen; None where none are known.
  """

  reference: str
  train: str | None
  held_out: str | None


def choose_sources(
  model: Model | None, reference: str | None = None, train: str | None = None, held_out: str | None = None
) -> Sources:
  """Return the sources to measure a model by: those given, else its own data and its `companions`.

  Args:
    model: None: of images that are given, nothing is known but themselves.
    reference: A source, or a file or folder of a reference.
    train, held_out: Sources.

  Raises:
    UserError: A source that is not there; none known, for a model that does not say what it was trained on.
  """
  own = None if model is None else model.provenance.get("source")
  reference = reference or own_reference(model)
  check_reference(reference)
  train = train or own or (reference if is_source(reference) else None)
  held_out = held_out or (None if train is None else companions(train).held_out)
  for field, source in (("train_source", train), ("test_source", held_out)):
    if source is not None:
      with renamed("source", field):
        validate_source(source)
  return Sources(reference, train, held_out)


def is_source(reference: str) -> bool:
  """Say whether a reference is a data set, and no file of statistics or path.

  >>> is_source("digits:train"), is_source("img64.pkl")
  (True, False)
  """
  return reference.partition(":")[0] in SOURCES


def check_fits(shape: tuple[int, ...], features: Extractor) -> None:
  """Check that features can measure images of a shape.

  Raises:
    UserError: Names both shapes.
  """
  if features.image_shape not in (None, shape):
    given = f"of {list(features.image_shape or ())} images"
    expected = f"features of {list(shape)} images, as they are measured here: train-features"
    raise UserError("features", given, expected)


def check_images(
  shape: tuple[int, ...], features: Extractor, framing: Framing, **sources: str | None
) -> None:
  """Check that features, and sources of real images by the argument they came from, fit images of a shape.

  Raises:
    UserError: Names the argument, and both shapes.
  """
  check_fits(shape, features)
  for field, source in sources.items():
    if source is None:
      continue
    with renamed("source", field):
      found = open_source(source, framing=framing)[0]["image"].shape
    check_shape(field, source, tuple(found), shape)


def check_shape(field: str, source: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
  """Check that real images have the shape of those that are compared with them.

  Raises:
    UserError: Names both.
  """
  if found != shape:
    expected = f"images of shape {list(shape)}, as those that are measured, not {list(found)}"
    raise UserError(field, source, expected)


def own_reference(model: Model | None) -> str:
  """Return the source that samples of a model are compared with by default.

  Raises:
    UserError: It does not say what it was trained on.
  """
  own = None if model is None else model.provenance.get("source")
  if own is None:
    expected = "the data to compare with, such as digits: the model does not say its own, or it is code"
    if model is None:
      expected = "what to compare with: a file of statistics, or images, such as digits"
    raise UserError("reference", "", expected)
  return companions(own).reference


def open_like_own(model: Model, spec: str) -> Source:
  """Open a source whose images are cropped as the model's own were.

  Raises:
    UserError: It is not there, or not what it should be.
  """
  return open_source(spec, framing=framing_of(model))


def framing_of(model: Model) -> Framing:
  """Return how the images that a model was trained on became squares."""
  return Framing(**(model.provenance.get("framing") or {}))


@dataclasses.dataclass(frozen=True, eq=False)
class RealData:
  """Real images, and what is measured of them once for all samples.

  Args:
    reference: What samples are compared with.
    train_source: Source of the images that the model may have memorised; None where unknown.
    held_out_source: Source of real images it has not seen; None where there are none.
    framing: How their images become squares.
    features: The measure.
    needs: What is kept of the reference, of `MOMENTS` and `ROWS`.
    batch_size: Images that are read at a time.
    num: The first so many images of the reference; None: all.
    progress: Show a bar while the reference is measured.
  """

  reference: Reference
  train_source: str | None
  held_out_source: str | None
  framing: Framing
  features: Extractor
  needs: frozenset[str]
  batch_size: int = 256
  num: int | None = None
  progress: bool = True
  _made: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

  @functools.cached_property
  def train(self) -> np.ndarray | None:
    """uint8 [N,H,W,C], the images the model may have memorised."""
    return None if self.train_source is None else self._images(self.train_source)

  @functools.cached_property
  def held_out(self) -> np.ndarray | None:
    """uint8 [N,H,W,C], real images it has not seen."""
    return None if self.held_out_source is None else self._images(self.held_out_source)

  def remembered(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what is made under a name, which happens the first time only."""
    if name not in self._made:
      self._made[name] = make()
    return self._made[name]

  def _images(self, source: str) -> np.ndarray:
    return images(open_source(source, framing=self.framing))

  @property
  def statistics(self) -> Statistics | None:
    """Those of a file."""
    return self.reference.statistics

  @property
  def form(self) -> str:
    """What samples are compared with, in words."""
    images, statistics = self.reference.images, self.statistics
    count = "" if images is None else f"{len(images) if self.num is None else self.num:,} images"
    if statistics is None:
      return count
    of = f" of {statistics.about['n']:,} images" if "n" in statistics.about else ""
    return f"statistics{of}{f', and {count}' if count else ''}"

  @functools.cached_property
  def collected(self) -> Collected:
    """What is needed of the reference images, which pass by once; moments are remembered in the cache.

    Raises:
      UserError: Rows are needed of what is known by its statistics only.
    """
    given = {} if self.statistics is None else _given(self.statistics)
    missing = self.needs - given.keys()
    found = self._passed(missing) if missing else Collected()
    return dataclasses.replace(found, moments={**found.moments, **given})

  def _passed(self, needs: frozenset[str]) -> Collected:
    source = self.reference.images
    if source is None:
      expected = f"images: {', '.join(sorted(needs))} of real images are needed, and it has statistics only"
      raise UserError("reference", self.reference.name, expected)
    kept = self._cache(needs) if needs <= MOMENTS.keys() else None
    before = _remembered(kept, self.features.name) if kept is not None else None
    if before is not None:
      return before
    count = len(source) if self.num is None else self.num
    numbers = hosts.part(count)
    batches = lambda start, stop: source.batches(start, stop, self.batch_size)
    mine = meetings.together(
      lambda: collect(batches, numbers, self.features, needs, title="reference", progress=self.progress)
    )
    found = mine.whole(self.features, needs, source.shape)
    if kept is not None and "moments" in needs and jax.process_index() == 0:
      about = self.described(count)
      statistics = Statistics(found.moments["moments"], found.moments.get("spatial_moments"), about)
      with contextlib.suppress(UserError):  # a full disk is no reason to stop
        save_statistics(kept, statistics)
    return found

  def _cache(self, needs: Collection[str]) -> Path | None:
    """Return where moments are remembered: by what they are of."""
    key = {
      **self.described(0),
      "needs": sorted(needs),
      "hash": self.reference.hash,
      "num": self.num,
      "version": 1,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    try:
      return cache_folder() / "references" / f"{digest}.npz"
    except NoCache:
      return None

  def described(self, count: int) -> dict[str, Any]:
    """Return what statistics of the reference are of, as a file of them says it."""
    source = self.reference.images
    return {
      "features": self.features.name,
      "features_hash": self.features.hash,
      "resize": self.features.resize,
      "image_shape": None if source is None else list(source.shape),
      "source": self.reference.name,
      "dataset_fingerprint": self.reference.hash,
      "matmul_precision": "highest",
      "n": count,
    }


def _given(statistics: Statistics) -> dict[str, Moments]:
  spatial = statistics.spatial_moments
  return {"moments": statistics.moments, **({} if spatial is None else {"spatial_moments": spatial})}


def _remembered(path: Path, features: str) -> Collected | None:
  try:
    found = read_statistics(path, features) if path.exists() else None
  except UserError:  # damaged: it is made anew
    return None
  return None if found is None else Collected(found.moments.count, _given(found))
