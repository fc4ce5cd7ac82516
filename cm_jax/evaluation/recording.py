"""Measure sets of images one after the other; each one's records go to those of the run when it is done."""

from collections.abc import Generator, Sequence

import jax
import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation import hosts, records
from cm_jax.evaluation.asked import Asked
from cm_jax.evaluation.earlier import earlier
from cm_jax.evaluation.making import real_records, sample_records
from cm_jax.evaluation.measuring import measure
from cm_jax.evaluation.memorisation import ROWS, check_by, save_neighbours
from cm_jax.evaluation.partial import unfinished
from cm_jax.evaluation.records import Record
from cm_jax.evaluation.subjects import Subject
from cm_jax.storage.pictures import save_grid
from cm_jax.storage.run import RunFolder

GRID_IMAGES = 100
UNFINISHED = ".evaluating"


class Recorder:
  """The records of one call of `evaluate`.

  Args:
    asked: By what samples are measured.
    out: Run folder; None: they are returned only.
    again: Measure also what was measured before.
    save_every: Seconds of work that an interruption costs at most.
    progress: Show bars.
    nearest: Draw samples beside their nearest training images, by "pixels" or "features"; None: by pixels,
      where training images are read anyway.

  Raises:
    UserError: Neighbours are asked for, and there is no run, or nothing known to be trained on.

  Attributes:
    made: What was measured.
    found: What had been.
    name: Of the run, for bars.
  """

  def __init__(
    self,
    asked: Asked,
    out: epath.PathLike | None,
    again: bool,
    save_every: float,
    progress: bool,
    nearest: str | None = None,
  ):
    check_by(nearest)
    if nearest is not None and (out is None or asked.real.train_source is None):
      expected = "a run folder for the picture (out), and the images that were trained on (train_source)"
      raise UserError("nearest", nearest, expected)
    reads = asked.real.train_source is not None and any(
      "train" in metric.needs_real for metric in asked.metrics.values()
    )
    self._nearest = nearest or ("pixels" if reads else None)
    self._asked, self._every, self._progress = asked, save_every, progress
    self._run = None if out is None else RunFolder.at(out)
    self.made: list[Record] = []
    self.found: list[Record] = []
    self.name = "" if self._run is None else self._run.path.name
    self._is_main = jax.process_index() == 0
    looks = self._run is not None and self._is_main and not again and self._run.evaluations.exists()
    self._before = records.read(self._run.evaluations) if self._run is not None and looks else []

  def record(self, subjects: Sequence[Subject], num: int) -> list[bool]:
    """Measure sets of images that were not measured before; return whether each was so."""
    known = [earlier(self._before, self._asked, subject.fields) for subject in subjects]
    is_new = [bool(new) for new in hosts.as_main([not found for found in known])]
    for subject, found, new in zip(subjects, known, is_new, strict=True):
      if new:
        self._measure(subject, num)
      else:
        self.found += [record for record in found if record not in self.found]
    return is_new

  def add(self, made: list[Record]) -> None:
    """Take records, and append them to the run."""
    self.made += made
    if self._run is not None and self._is_main:
      records.append(self._run.evaluations, made)

  def _measure(self, subject: Subject, num: int) -> None:
    first = _First(subject, GRID_IMAGES if self._run is not None and self._is_main else 0)
    place = None if self._run is None else self._run.path / UNFINISHED
    watched = first.watched()
    needs = self._asked.needs
    _ = self._asked.real.collected  # first: it is what may be wrong
    collected, partial = measure(
      watched, num, self._asked.extractor, needs, place, self._every, self._progress
    )
    common = {**subject.fields, **records.provenance()}
    real = [] if self.made else real_records(self._asked, {**_of_real(subject), **records.provenance()})
    self.add([*real, *sample_records(collected, self._asked, common)])
    nfe = subject.fields.get("nfe")
    if self._run is not None and self._is_main and nfe is not None:
      images = first.images(min(num, GRID_IMAGES))
      save_grid(images, self._run.grid_of_nfe(nfe), titles=subject.titles(len(images)))
    if self._run is not None and self._is_main and self._nearest is not None:
      train = self._asked.real.train
      assert train is not None  # its source is known
      extractor = self._asked.extractor if self._nearest == "features" else None
      save_neighbours(self._run.nearest(nfe, self._nearest), first.images(min(num, ROWS)), train, extractor)
    if partial is not None:
      partial.clear(num)

  def told(self) -> list[str]:
    """Return what there is to say of measurements that were interrupted and not taken up."""
    left = [] if self._run is None or not self._is_main else unfinished(self._run.path / UNFINISHED)
    if not left:
      return []
    return [f"unfinished evaluations in {UNFINISHED}: {len(left)}; the same command goes on with each"]


def _of_real(subject: Subject) -> dict[str, object]:
  """Return what records of real images say of the model that is measured."""
  known = ("average", "step", "config_sha256", "dataset_fingerprint")
  return {key: subject.fields.get(key) for key in known}


class _First:
  """The first images of a set, caught as they pass by, for a picture."""

  def __init__(self, subject: Subject, count: int):
    self._subject, self._count = subject, count
    self._caught: list[np.ndarray] = []
    self._next = 0

  def watched(self) -> Subject:
    """Return the set, with an eye on it."""
    return self._subject._replace(batches=self._batches)

  def _batches(self, start: int, stop: int) -> Generator[np.ndarray, None, None]:
    for images in self._subject.batches(start, stop):
      if start == self._next < self._count:
        self._caught.append(images[: self._count - self._next])
        self._next += len(self._caught[-1])
      start += len(images)
      yield images

  def images(self, count: int) -> np.ndarray:
    """Return the first so many; those that passed by before an interruption are made again."""
    if self._next < count:
      self._caught = list(self._subject.batches(0, count))
    return np.concatenate(self._caught)[:count]
