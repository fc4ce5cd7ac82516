"""What a run goes on from, or back to: its newest checkpoint that is what was written, if all it was made
with is the same."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cm_jax import meetings
from cm_jax.data.sources import is_data_of
from cm_jax.errors import UserError, within
from cm_jax.models import Experiment
from cm_jax.notices import notice
from cm_jax.storage import digests, lines, run
from cm_jax.training import peers, sharding
from cm_jax.training.checkpoint import CheckpointStore, Damaged
from cm_jax.training.program import Program
from cm_jax.types import Params, TrainState


@dataclasses.dataclass(frozen=True)
class Position:
  """Where a run is in its data besides its step: step k, from 0, takes batch `k + data_offset`.

  Attributes:
    data_offset: Batches that were left out when it went back.
    rollbacks: How often it did.
  """

  data_offset: int = 0
  rollbacks: int = 0

  def back(self, failed: int, step: int) -> "Position":
    """Return where it goes on: from `step`, with the batches after those of step `failed`.

    >>> Position(5, 1).back(failed=40, step=30)
    Position(data_offset=15, rollbacks=2)
    """
    return Position(self.data_offset + failed - step, self.rollbacks + 1)

  def scalars(self) -> dict[str, float]:
    """Return it for a log line; nothing where it never went back."""
    return dataclasses.asdict(self) if self.rollbacks else {}


@dataclasses.dataclass(frozen=True)
class Resumed:
  """What a run goes on from.

  Attributes:
    state: Of the checkpoint.
    seconds: That training has taken so far.
    position: In the data.
    wall: Seconds of wall time on each of goodput.PARTS; nothing where the run was too old to tell.
    teacher: An earlier student, if the checkpoint holds one.
    damaged: Newer steps that cannot be used; to be set aside before training writes them again.
  """

  state: TrainState
  seconds: float
  position: Position
  wall: Mapping[str, Any]
  teacher: Params | None
  damaged: tuple[int, ...]


def teacher_sha256(experiment: Experiment) -> str | None:
  """Return what identifies a teacher wherever it lies: the sha256 of its weights; None without one."""
  return None if experiment.teacher is None else digests.of_arrays(experiment.teacher.params["net"])


def resume(
  experiment: Experiment, program: Program, store: CheckpointStore, stored: Mapping[str, Any] | None
) -> Resumed | None:
  """Return what a run goes on from; None if it begins. Every process of a job calls it.

  Args:
    experiment: From `build`.
    program: Of it.
    store: The run's checkpoints.
    stored: The run's config.json, None if it has none.

  Raises:
    UserError: No checkpoint can be read, all are gone, or the run was trained with another config, teacher or
      data; processes that see other checkpoints.
  """
  was_cut_off = store.is_cut_off()
  steps = store.steps()[::-1]
  peers.agree(meetings.once("checkpoints"), {f"checkpoints in {store.folder}": steps})
  if not steps:
    _check_begins(store.workdir, was_cut_off)
    return None
  return _newest(steps, lambda step: _read(experiment, program, store, stored, step))


def go_back(experiment: Experiment, program: Program, store: CheckpointStore, until: int) -> Resumed | None:
  """Return what a run goes back to: its newest checkpoint until a step, the oldest where all are newer; None
  if it has none.

  Every process of a job calls it; the first says which it is.

  Raises:
    UserError: None that is old enough can be read.
  """
  store.settle()
  steps = store.steps()
  newest = sharding.agreed(max((step for step in steps if step <= until), default=min(steps, default=-1)))
  if newest < 0:
    return None
  older = [step for step in steps[::-1] if step <= newest]
  return _newest(older, lambda step: _restored(experiment, program, store, step))


def _newest(steps: list[int], read: Callable[[int], Resumed]) -> Resumed:
  """Return the first of some steps, newest first, that every process can read."""
  failures: list[UserError] = []
  for step in steps:
    found: Resumed | None = None
    failure: Damaged | None = None
    try:
      found = read(step)
    except Damaged as error:
      failure = error
    failed = meetings.first_error(failure)  # what one process fetched may have suffered on the way
    if failed is not None:
      failures.append(failed)
      continue
    for earlier in failures:
      notice(f"{earlier.value} is damaged, training goes on from {step} ({earlier.expected})")
    assert found is not None
    return dataclasses.replace(found, damaged=tuple(steps[: len(failures)]))
  raise failures[0]


def _read(
  experiment: Experiment,
  program: Program,
  store: CheckpointStore,
  stored: Mapping[str, Any] | None,
  step: int,
) -> Resumed:
  extra, place = store.extra(step), str(store.folder / str(step))
  if "config" in extra:
    experiment.check_resume(extra["config"], f"{place}, since which config.json was changed")
  elif stored is None:
    expected = f"the config of the run whose checkpoint {place} is"
    raise UserError(str(run.RunFolder.at(store.workdir).config), "no such file", expected)
  elif extra.get("config_sha256") not in (None, run.identity(stored)):
    expected = f"the config that {place} was trained with, of sha256 {extra['config_sha256']}"
    raise UserError(str(run.RunFolder.at(store.workdir).config), run.identity(stored), expected)
  _check_data(experiment, extra)
  _check_teacher(experiment, extra, stored)
  return _restored(experiment, program, store, step)


def _restored(experiment: Experiment, program: Program, store: CheckpointStore, step: int) -> Resumed:
  stages = experiment.method.objective.needs.stages
  teacher = None
  state, extra = store.restore(step, program.shapes, program.shardings)
  if stages[1:-1] and step >= stages[1] and experiment.teacher is not None:
    params = experiment.teacher.params
    teacher = store.restore_teacher(step, params, program.shardings_of(params, "teacher"))
  position = Position(extra.get("data_offset", 0), extra.get("rollbacks", 0))
  return Resumed(state, extra["seconds"], position, extra.get("wall", {}), teacher, ())


def _check_data(experiment: Experiment, extra: Mapping[str, Any]) -> None:
  config = experiment.config
  is_same = is_data_of(experiment.source, extra["fingerprint"], config.data.conditional)
  if not is_same and config.run.on_other_data != "allow":
    expected = "the data this run began with (or run.on_other_data = allow to go on with it)"
    with within("config"):
      raise UserError("data.source", config.data.source, expected)


def _check_teacher(
  experiment: Experiment, extra: Mapping[str, Any], stored: Mapping[str, Any] | None
) -> None:
  """Check that the teacher is the run's own, wherever it lies now."""
  if experiment.teacher is None:
    return
  ours = experiment.config.teacher
  if stored is not None and extra.get("teacher_sha256") is None:  # older: all it knows is where it lay
    theirs = stored["teacher"]
    if (ours.step, ours.average) != (theirs["step"], theirs["average"]):
      with within("config"):
        expected = f"{theirs['step']} and average {theirs['average']}, as the run has it"
        raise UserError("teacher.step", f"{ours.step} and average {ours.average}", expected)
    if ours.path != theirs["path"]:
      known = "the run is too old to know its sha256"
      notice(f"the teacher {ours.path} is taken to be what {theirs['path']} was: {known}")
  elif extra.get("teacher_sha256") != teacher_sha256(experiment):
    with within("config"):
      raise UserError(
        "teacher.path", ours.path, "the teacher this run began with; the weights of this one are others"
      )


def _check_begins(workdir: Any, was_cut_off: bool) -> None:
  """Check that a folder without a checkpoint has lost none; say so where it was stopped before its first."""
  folder = run.RunFolder.at(workdir)
  saved = run.last_saved(workdir)
  if saved is not None and not was_cut_off:
    expected = (
      f"the checkpoint of step {saved}, which it wrote and which {folder.checkpoints} has no longer "
      "(put it back, or take another folder to begin anew)"
    )
    raise UserError("workdir", str(folder.path), expected)
  if next(lines.by_step(folder.metrics), None):
    notice(f"{folder.path} has metrics but no checkpoint: it was stopped before its first, and begins anew")
