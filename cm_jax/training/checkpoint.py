"""Checkpoints: the only module that knows Orbax. Async, atomic, exact;
restored into an explicit target with its shardings.

A step's folder under `workdir/checkpoints` holds three items: `state` (the TrainState without averages),
`averages` (by name) and `extra` (JSON: format number, dataset fingerprint, seconds); and `teacher` where the
teacher is no file but an earlier student (progressive distillation).
Readers take one item, or one average, without the rest.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from cm_jax.errors import UserError, one_of
from cm_jax.storage.run import RunFolder
from cm_jax.training.averages.track import join_averages, split_averages
from cm_jax.types import Params, TrainState

FORMAT = 1


def _abstract(tree: Any, shardings: Any = None) -> Any:
  if shardings is None:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings
  )


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
    self.folder = Path(RunFolder.at(workdir).checkpoints)
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    if keep_every:
      policies.append(checkpoint_managers.EveryNSteps(keep_every))
    if keep_steps:
      policies.append(checkpoint_managers.CustomSteps(list(keep_steps)))
    self._options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=True, preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies)
    )
    self._manager: ocp.CheckpointManager | None = None
    # Orbax reports routine things at warning level, over the progress bar.
    logging.getLogger("absl").setLevel(logging.ERROR)

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      trees = {name: ocp.PyTreeCheckpointHandler() for name in ("state", "averages", "teacher")}
      handlers = {**trees, "extra": ocp.JsonCheckpointHandler()}
      self._manager = ocp.CheckpointManager(self.folder, options=self._options, item_handlers=handlers)
    return self._manager

  def steps(self) -> list[int]:
    """Return the steps with a complete checkpoint, ascending."""
    return sorted(self._open().all_steps()) if self.folder.is_dir() else []

  def latest(self) -> int | None:
    """Return the newest complete step, or None."""
    return max(self.steps(), default=None)

  def save(
    self, state: TrainState, extra: dict[str, Any], teacher: Params = None, force: bool = True
  ) -> None:
    """Begin to write a checkpoint of `state`, and of a teacher;
    returns once the arrays are copied off the devices."""
    opt_state, averages = split_averages(state.opt_state)
    items = {
      "state": ocp.args.PyTreeSave(state.replace(opt_state=opt_state)),  # type: ignore[attr-defined]
      "averages": ocp.args.PyTreeSave(averages),
      "extra": ocp.args.JsonSave({"format": FORMAT, **extra}),
    }
    if teacher is not None:
      items["teacher"] = ocp.args.PyTreeSave(teacher)
    self._open().save(int(state.step), args=ocp.args.Composite(**items), force=force)

  def wait(self) -> None:
    """Wait until what was begun is on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Wait, then release the threads."""
    if self._manager is not None:
      self._manager.close()
      self._manager = None

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

  def _restore(self, step: int, **items: Any) -> Any:
    try:
      return self._open().restore(step, args=ocp.args.Composite(**items))
    except Exception as error:
      # Orbax and tensorstore raise many types; all mean that this checkpoint cannot be read.
      others = ", ".join(str(other) for other in self.steps() if other != step)
      also = f"; other steps here: {others} (move {step} away to go on from the newest)" if others else ""
      reason = str(error).strip().split("\n")[0][:200]
      expected = f"a readable checkpoint ({type(error).__name__}: {reason}){also}"
      raise UserError("checkpoint", str(self.folder / str(step)), expected) from error

  def extra(self, step: int) -> dict[str, Any]:
    """Return the JSON item of a step.

    Raises:
      UserError: Unreadable, or written by a newer format.
    """
    extra = self._restore(step, extra=ocp.args.JsonRestore())["extra"]
    if extra.get("format") != FORMAT:
      raise UserError(
        "checkpoint", str(self.folder / str(step)), f"format {FORMAT}, not {extra.get('format')}"
      )
    return extra

  def restore(self, step: int, like: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Restore a whole state, on any mesh.

    Args:
      step: A stored step.
      like: Shapes and dtypes (`jax.eval_shape` of the initial state).
      shardings: Where each leaf goes, in the structure of `like`.

    Raises:
      UserError: The checkpoint is corrupt, or its arrays are not those of `like`.
    """
    target = _abstract(like, shardings)
    opt_state, averages = split_averages(target.opt_state)
    args = {
      "state": _restore_args(target.replace(opt_state=opt_state)),
      "averages": _restore_args(averages),
      "extra": ocp.args.JsonRestore(),
    }
    restored = self._restore(step, **args)
    state = restored["state"]
    return state.replace(opt_state=join_averages(state.opt_state, restored["averages"])), restored["extra"]

  def restore_teacher(self, step: int, like: Params, shardings: Params) -> Params:
    """Restore the teacher stored beside a state.

    Raises:
      UserError: There is none, or it is corrupt, or its arrays are not those of `like`.
    """
    return self._restore(step, teacher=_restore_args(_abstract(like, shardings)))["teacher"]

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
    target = _abstract(like, jax.tree.map(lambda _: sharding, like))
    if average == "params":
      return self._restore(step, state=_restore_args({"params": target}, partial=True))["state"]["params"]
    try:
      known = sorted(self._open().item_metadata(step)["averages"].keys())
    except Exception as error:
      raise UserError(
        "checkpoint", str(self.folder / str(step)), f"a readable checkpoint ({type(error).__name__})"
      ) from error
    if average not in known:
      raise UserError("average", average, one_of([*known, "params"], average))
    return self._restore(step, averages=_restore_args({average: target}, partial=True))["averages"][average]


def _restore_args(target: Any, partial: bool = False) -> ocp.args.PyTreeRestore:
  return ocp.args.PyTreeRestore(
    item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
  )
