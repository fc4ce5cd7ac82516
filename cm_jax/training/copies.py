"""Checkpoints of a run in an object store: Orbax reads and writes them in a private folder of this machine.

Orbax 0.12 writes to `gs://` but not to `s3://`, and where it does nobody bounds how long it tries. Here both
are one: a checkpoint is written and sealed on the local disk, in the background as ever, its files are
copied, and its seal last: a step counts once that is there. To read one its items are fetched, and compared
with the seal as any others. The folder is in TMPDIR and takes as much as two checkpoints.

In a job of several processes the first writes all, and alone changes what is in the store: arrays that are
shared between processes are gathered on its host, one at a time. To read each fetches all it needs. They need
no disk in common.
"""

import functools
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import checkpoint_managers

from cm_jax.errors import UserError
from cm_jax.storage import bucket
from cm_jax.storage.scratch import private_folder
from cm_jax.training import sharding
from cm_jax.training.on_disk import ASIDE
from cm_jax.training.step_folder import SEAL


class Copies:
  """The checkpoints of one run in an object store, and what of them is here.

  Args:
    there: The folder of the steps.
  """

  is_own = True

  def __init__(self, there: epath.Path):
    self._there = str(there)
    self._store = bucket.filesystem(there)
    self._items: dict[int, set[str]] = {}  # that were fetched

  @functools.cached_property
  def here(self) -> Path:
    """The private folder; it goes with this object, of a killed process when another makes one."""
    folder = private_folder("cm_jax-checkpoints")
    weakref.finalize(self, shutil.rmtree, folder, True)
    return folder

  @functools.cached_property
  def _files(self) -> dict[str, set[str]]:
    """The files of every folder there, complete or not, by its name; read once, then kept by who writes."""
    try:
      found = self._ask(lambda: self._store.find(self._there))
    except FileNotFoundError:
      return {}
    files: dict[str, set[str]] = {}
    for path in found:
      name, _, file = path.removeprefix(self._there.partition("://")[2] + "/").partition("/")
      if ".." not in file.split("/"):  # such a key would be written outside of the folder here
        files.setdefault(name, set()).add(file)
    return files

  def steps(self) -> list[int]:
    """Return the steps that are complete, ascending."""
    return sorted(int(name) for name, files in self._files.items() if name.isdigit() and SEAL in files)

  def is_cut_off(self) -> bool:
    """Whether a step is not complete: a process was killed while it was copied, or removed."""
    return any(name.isdigit() and SEAL not in files for name, files in self._files.items())

  def kept_here(self, policy: Any) -> Any:
    """Return which steps Orbax keeps here: what is copied need not stay."""
    return checkpoint_managers.LatestN(1)

  def to_write(self, trees: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arrays that are to be written, whole; None where another process writes them.

    Every process of a job calls it.
    """
    return trees if jax.process_count() == 1 else sharding.on_first_host(trees)

  def look_again(self) -> None:
    """Take it that another process has written, or removed; what the first did it knows."""
    if jax.process_index() > 0:
      self.__dict__.pop("_files", None)

  def fetch(self, step: int, items: Sequence[str]) -> bool:
    """Copy items of a step here, with what stands beside its items; say whether any was not here yet.

    Raises:
      UserError: The store does not answer.
    """
    folder = self.here / str(step)
    have = self._items.setdefault(step, set()) if folder.is_dir() else set()
    missing = [item for item in items if item not in have and not (folder / item).is_dir()]
    if not missing:
      return False
    for other in self.here.iterdir():  # there is room for two
      if other.name.isdigit() and other != folder:
        shutil.rmtree(other, ignore_errors=True)
    names = sorted(
      name for name in self._files[str(step)] if "/" not in name or name.partition("/")[0] in missing
    )
    try:
      there, here = [self._at(step, name) for name in names], [str(folder / name) for name in names]
      self._ask(lambda: self._store.get(there, here))
    except OSError as error:
      expected = f"a checkpoint that can be fetched ({bucket.said(error)})"
      raise UserError("checkpoint", self._at(step), expected) from error
    self._items[step] = have | set(missing)
    return True

  def put(self, step: int, folder: Path, policy: Any) -> None:
    """Copy a sealed folder, its seal last; then remove the steps that Orbax's policy does not keep.

    Raises:
      OSError: The store says no, or stays away.
    """
    self._remove(str(step))
    self._clear()  # what a kill left
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    rest = [name for name in files if name != SEAL]
    here, there = [str(folder / name) for name in rest], [self._at(step, name) for name in rest]
    self._ask(lambda: self._store.put(here, there))
    self._ask(lambda: self._store.put_file(str(folder / SEAL), self._at(step, SEAL)))
    self._files[str(step)] = set(files)
    steps = self.steps()
    about = [SimpleNamespace(step=step, metrics=None, time=None) for step in steps]
    kept = policy.should_preserve(about, context=checkpoint_managers.PreservationContext())
    for step, is_kept in zip(steps, kept, strict=True):
      if not is_kept:
        self._remove(str(step))

  def set_aside(self, step: int) -> None:
    """Copy a step to a name that counts for none, then remove it: "40" becomes "40.damaged"."""
    if jax.process_index() == 0:
      name = f"{step}{ASIDE}"
      self._remove(name)
      files = self._files[str(step)]
      for file in sorted(files):
        self._ask(functools.partial(self._store.cp_file, self._at(step, file), self._at(name, file)))
      self._files[name] = set(files)
    self.remove(step)

  def remove(self, step: int) -> None:
    """Remove a step, its seal first: half of it is none."""
    if jax.process_index() == 0:
      self._remove(str(step))
    if "here" in self.__dict__:  # every process may have fetched it
      shutil.rmtree(self.here / str(step), ignore_errors=True)

  def _remove(self, name: str) -> None:
    files = self._files.pop(name, set())
    if SEAL in files:
      self._ask(lambda: self._store.rm_file(self._at(name, SEAL)))
    if rest := [self._at(name, file) for file in sorted(files - {SEAL})]:
      self._ask(lambda: self._store.rm(rest))

  def _clear(self) -> None:
    """Remove what is not complete: nobody else writes here."""
    for name, files in list(self._files.items()):
      if name.isdigit() and SEAL not in files:
        self._remove(name)

  def _at(self, step: int | str, name: str = "") -> str:
    return f"{self._there}/{step}/{name}".rstrip("/")

  def _ask(self, act: Callable[[], Any]) -> Any:
    return bucket.patiently(self._there, act)
