"""Measure one set of images, shared by all processes of a job, going on where an interrupted one stopped."""

from collections.abc import Collection

from etils import epath

from cm_jax import meetings
from cm_jax.errors import UserError
from cm_jax.evaluation import hosts
from cm_jax.evaluation.collecting import Collected, collect
from cm_jax.evaluation.features.base import Extractor
from cm_jax.evaluation.partial import EVERY, Partial
from cm_jax.evaluation.subjects import Subject


def measure(
  subject: Subject,
  num: int,
  extractor: Extractor,
  needs: Collection[str],
  folder: epath.Path | None = None,
  every: float = EVERY,
  progress: bool = True,
) -> tuple[Collected, Partial | None]:
  """Return what is needed of the first images of a set, on every process.

  Args:
    subject: The set.
    num: How many.
    extractor: What measures them.
    needs: What is kept, of `MOMENTS` and `ROWS`.
    folder: Where the state of an unfinished measurement lies; None: nowhere.
    every: Seconds between two writings of the state.
    progress: Show a bar.

  Returns:
    What was found, and the state, to be cleared when the records are written.

  Raises:
    UserError: On every process, what is wrong with the images.
  """
  partial = None
  if folder is not None:
    by = {"features": extractor.hash, "resize": extractor.resize}
    images = {**subject.fields, **subject.identity(), **by}
    partial = Partial(folder, images, {"needs": sorted(needs), "num": num}, every)
  mine = meetings.together(lambda: _mine(subject, hosts.part(num), extractor, needs, partial, progress))
  return mine.whole(extractor, needs, subject.shape), partial


def _mine(
  subject: Subject,
  numbers: range,
  extractor: Extractor,
  needs: Collection[str],
  partial: Partial | None,
  progress: bool,
) -> Collected:
  latest = None if partial is None else partial.load()

  def done(collected: Collected) -> None:
    nonlocal latest
    latest = collected
    if partial is not None:
      partial.note(collected)

  try:
    return collect(subject.batches, numbers, extractor, needs, latest, done, subject.title, progress)
  except UserError:
    if partial is not None:
      partial.clear()  # what came before a bad image does not count
    raise
  except BaseException:  # a signal, or anything else: the next run goes on from here
    if partial is not None and latest is not None:
      partial.save(latest)
    raise
