"""Checkpoints: the only module that knows Orbax. Async, atomic, exact;
restored into an explicit target with its shardings.

A step's folder under `workdir/checkpoints` holds three items: `state` (the TrainState without averages),
`averages` (by name) and `extra` (JSON: format number, the run's config, dataset fingerprint, teacher's
sha256, data offset and rollbacks, seconds, wall time by part); and `teacher` where the teacher is no file but
an earlier student (progressive distillation). Readers take one item, or one average, without the rest; what
they take is compared with the sha256 it was written with (`step_folder`).
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from cm_jax import meetings
from cm_jax.errors import UserError, one_of
from cm_jax.storage import bucket
from cm_jax.storage.run import RunFolder, note_saved
from cm_jax.storage.whole import ROOM
from cm_jax.training import failed_save, step_folder
from cm_jax.training.averages.track import join_averages, split_averages
from cm_jax.training.copies import Copies
from cm_jax.training.kept import Exactly, NewestUntil, kept
from cm_jax.training.manager import Manager, open_manager
from cm_jax.training.on_disk import ASIDE, UNDONE, OnDisk
from cm_jax.training.sharding import abstract
from cm_jax.training.targets import restore_args
from cm_jax.types import Params, TrainState

Read = TypeVar("Read")


class Damaged(UserError):
  """A checkpoint that cannot be read, or is not what was written."""


class CheckpointStore:
  """The checkpoints of one run folder. Opening a store writes nothing;
  the folder appears with the first save.

  Args:
    workdir: The run folder.
    keep: How many of the newest to keep, >= 1. The newest is never pruned.
    keep_every: Also keep one each so many steps for ever; 0 for none.
    keep_steps: Also keep those of these steps for ever.
  """

  def __init__(
    self, workdir: epath.PathLike, keep: int = 2, keep_every: int = 0, keep_steps: Sequence[int] = ()
  ):
    self.folder = RunFolder.at(workdir).checkpoints
    self._place = Copies(self.folder) if bucket.is_bucket(self.folder) else OnDisk(Path(self.folder))
    self.workdir, self._writing_step = workdir, -1
    self._good, self._best = NewestUntil(), Exactly()
    self._kept = kept(keep, keep_every, keep_steps, self._good, self._best)
    self._manager: Manager | None = None
    self._loud: Callable[[], None] = lambda: None
    # Orbax reports routine things at warning level, over the progress bar, and what fails once a thread.
    logging.getLogger("absl").setLevel(logging.CRITICAL)

  def _open(self) -> Manager:
    if self._manager is None:
      self._loud = failed_save.silence()
      self._manager = open_manager(self._place, self._kept, self._seal)
    return self._manager

  def steps(self) -> list[int]:
    """Return the steps with a complete checkpoint, ascending."""
    return self._place.steps()

  def is_cut_off(self) -> bool:
    """Whether a process was killed in the middle of a save; opening the checkpoints removes what it left."""
    return self._place.is_cut_off()

  def latest(self) -> int | None:
    """Return the newest complete step, or None."""
    return max(self.steps(), default=None)

  def save(
    self, state: TrainState, extra: dict[str, Any], teacher: Params = None, force: bool = True
  ) -> None:
    """Begin to write a checkpoint of `state`, and of a teacher, on every process of a job;
    returns once the arrays are copied off the devices.

    Raises:
      UserError: The disk is full, or cannot be written: for this checkpoint, or the one before it.
    """
    self.settle()  # or others would wait for it in a collective operation, which not every network lets them
    self._writing_step = int(state.step)
    opt_state, averages = split_averages(state.opt_state)
    trees = {"state": state.replace(opt_state=opt_state), "averages": averages}  # type: ignore[attr-defined]
    written = self._place.to_write(trees if teacher is None else {**trees, "teacher": teacher})
    if written is None:
      return
    items: dict[str, Any] = {name: ocp.args.PyTreeSave(tree) for name, tree in written.items()}
    items["extra"] = ocp.args.JsonSave({"format": step_folder.FORMAT, **extra})
    step_folder.check_regular(self._place.here, self.steps())
    with self._writing():
      self._open().save(self._writing_step, args=ocp.args.Composite(**items), force=force)

  def _seal(self) -> None:
    """Seal what is on disk but its name; called by the thread that saves, on the process that names it."""
    step = str(self._writing_step)  # its folder is called 40.orbax-checkpoint-tmp
    made = (path for path in self._place.here.glob(f"{step}*") if path.name.partition(".")[0] == step)
    folder = next(path for path in made if path.suffix not in (ASIDE, UNDONE))
    step_folder.seal(folder)
    self._place.put(self._writing_step, folder, self._kept)
    note_saved(self.workdir, self._writing_step)

  def newest_until(self, step: int) -> int | None:
    """Return the newest complete step that is not after `step`, or None."""
    return max((stored for stored in self.steps() if stored <= step), default=None)

  def keep_good(self, step: int) -> None:
    """Keep the newest checkpoint of `step` or before, beside the newest of all, until told another step."""
    self._good.step = step

  def keep_best(self, step: int) -> None:
    """Keep the checkpoint of `step`, until told another."""
    self._best.step = step

  def set_aside(self, step: int) -> None:
    """Rename the folder of a damaged step, so that it can be written again: "40" becomes "40.damaged"."""
    self.close()  # Orbax remembers which steps there are
    self._place.set_aside(step)
    self.settle()

  def remove_after(self, step: int) -> None:
    """Remove the steps after one, which training undoes, on every process; a kill leaves no half of any."""
    self.close()
    undone = [stored for stored in self.steps() if stored > step]
    meetings.meet()  # all have looked
    for stored in undone:
      self._place.remove(stored)
    self.settle()

  def check(self) -> None:
    """Look, without waiting, whether what was begun went wrong.

    Raises:
      UserError: As for `save`.
    """
    if self._manager is not None:
      with self._writing():
        self._manager.check_for_errors()

  def wait(self) -> None:
    """Wait until what was begun is on disk.

    Raises:
      UserError: As for `save`.
    """
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def settle(self) -> None:
    """Wait until what was begun is kept, by whichever process; each of a job calls it.

    Raises:
      UserError: As for `save`.
    """
    self.wait()
    meetings.meet()
    self._place.look_again()

  def close(self) -> None:
    """Wait, then release the threads.

    Raises:
      UserError: As for `save`.
    """
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None
      self._loud()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turn what goes wrong in a save into one line, and remove what it left."""
    try:
      yield
    except Exception as error:  # Orbax and tensorstore raise many types, from many threads
      place, reason = str(self.folder / str(self._writing_step)), failed_save.reason(error)
      manager, self._manager = self._manager, None
      failed_save.abandon(manager, self._place.here)
      raise UserError("checkpoint", place, f"{ROOM} ({reason})") from None

  def choose(self, step: int = -1) -> int:
    """Return `step`, or the newest for -1.

    Raises:
      UserError: No checkpoint there.
    """
    steps = self.steps()
    if not steps:
      raise UserError("workdir", str(self.folder.parent), "a run with at least one complete checkpoint")
    if step == -1:
      return steps[-1]
    if step not in steps:
      raise UserError("step", step, f"a stored step: {', '.join(map(str, steps))}")
    return step

  def _damaged(self, step: int, reason: str) -> Damaged:
    others = ", ".join(str(other) for other in self.steps() if other != step)
    also = f"; other steps here: {others}" if others else "; there is no other step here"
    return Damaged("checkpoint", str(self.folder / str(step)), f"a readable checkpoint ({reason}){also}")

  def _check(self, step: int, *items: str) -> None:
    """Check that items are what was written."""
    if self._place.fetch(step, items):
      self.close()  # Orbax looks anew
    if reason := step_folder.damage(self._place.here / str(step), items):
      raise self._damaged(step, reason)

  def _restore(self, step: int, **items: Any) -> Any:
    self._check(step, *items)
    step_folder.check_regular(self._place.here, self.steps())
    try:
      return self._open().restore(step, args=ocp.args.Composite(**items))
    except Exception as error:
      # Orbax and tensorstore raise many types; all mean that this checkpoint cannot be read.
      said = str(error).strip().split("\n")[0][:200]
      raise self._damaged(step, f"{type(error).__name__}: {said}") from error

  def extra(self, step: int) -> dict[str, Any]:
    """Return the JSON item of a step.

    Raises:
      Damaged: It is unreadable, or not what was written.
      UserError: It is of a newer format.
    """
    self._check(step, "extra")
    return self._read(step, step_folder.read_extra)

  def restore(self, step: int, like: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Restore a whole state and its extra, on any mesh.

    Args:
      step: A stored step.
      like: Shapes and dtypes (`jax.eval_shape` of the initial state).
      shardings: Where each leaf goes, in the structure of `like`.

    Raises:
      Damaged: It is not what was written, or its arrays are not those of `like`.
    """
    extra = self.extra(step)
    target = abstract(like, shardings)
    opt_state, averages = split_averages(target.opt_state)
    stripped = restore_args(target.replace(opt_state=opt_state))
    restored = self._restore(step, state=stripped, averages=restore_args(averages))
    state = restored["state"]
    return state.replace(opt_state=join_averages(state.opt_state, restored["averages"])), extra

  def restore_teacher(self, step: int, like: Params, shardings: Params) -> Params:
    """Restore the teacher stored beside a state.

    Raises:
      Damaged: There is none, or it is not what was written, or its arrays are not those of `like`.
    """
    return self._restore(step, teacher=restore_args(abstract(like, shardings)))["teacher"]

  def restore_params(self, step: int, like: Params, average: str, sharding: Any = None) -> Params:
    """Restore one average, or the raw parameters ("params"), and nothing else.

    Args:
      step: A stored step.
      like: Shapes and dtypes of the parameters.
      average: Name of an average, or "params".
      sharding: One sharding for every leaf; None for the default device.

    Raises:
      UserError: No such average, or an unreadable checkpoint.
    """
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = abstract(like, jax.tree.map(lambda _: sharding, like))
    if average == "params":
      return self._restore(step, state=restore_args({"params": target}, partial=True))["state"]["params"]
    self._check(step, "averages")
    known = self._read(step, step_folder.averages)
    if average not in known:
      raise UserError("average", average, one_of([*known, "params"], average))
    return self._restore(step, averages=restore_args({average: target}, partial=True))["averages"][average]

  def _read(self, step: int, read: Callable[[Path], Read]) -> Read:
    try:
      return read(self._place.here / str(step))
    except step_folder.NewerFormat:
      raise
    except UserError as error:
      raise self._damaged(step, f"{error.field} = {error.value}") from error
