"""Checkpoints of a run on a file system that all its processes see: Orbax reads and writes them in place."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

ASIDE, UNDONE = ".damaged", ".undone"


class OnDisk:
  """The checkpoints of one run on a file system; `copies.Copies` is the same for an object store.

  Args:
    folder: Of the steps; made with the first of them.

  Attributes:
    here: Where Orbax reads and writes.
    is_own: Whether that is this process's own, and there.
  """

  is_own = False

  def __init__(self, folder: Path):
    self.here = folder

  def steps(self) -> list[int]:
    """Return the steps that are complete, ascending."""
    found = self.here.iterdir() if self.here.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit() and path.is_dir())

  def is_cut_off(self) -> bool:
    """Whether a process was killed in the middle of a save."""
    return any(self.here.glob("*orbax-checkpoint-tmp*"))

  def kept_here(self, policy: Any) -> Any:
    """Return which steps Orbax keeps here, of a policy for all."""
    return policy

  def to_write(self, trees: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arrays that this process's Orbax has a part in writing; None if it writes nothing."""
    return trees

  def look_again(self) -> None:
    """Take it that another process has written, or removed."""

  def fetch(self, step: int, items: Sequence[str]) -> bool:
    """Bring items of a step here; say whether any was not."""
    return False

  def put(self, step: int, folder: Path, policy: Any) -> None:
    """Do what a sealed step needs besides its name, which Orbax gives it."""

  def set_aside(self, step: int) -> None:
    """Rename the folder of a step: "40" becomes "40.damaged"."""
    self._move(step, ASIDE)

  def remove(self, step: int) -> None:
    """Remove a step; a kill in between leaves no half of it."""
    self._move(step, UNDONE)
    if jax.process_index() == 0:
      shutil.rmtree(self.here / f"{step}{UNDONE}", ignore_errors=True)

  def _move(self, step: int, suffix: str) -> None:
    if jax.process_index() == 0:
      moved = self.here / f"{step}{suffix}"
      shutil.rmtree(moved, ignore_errors=True)
      (self.here / str(step)).rename(moved)
