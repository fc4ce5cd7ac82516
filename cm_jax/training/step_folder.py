"""A step's folder besides its arrays, without Orbax: its seal, its `extra`, the names of its averages.

A checkpoint is what was written: the seal is the sha256 of every file of the step, beside its items. It is
written before the folder takes its name, by the thread that saves, and compared before any of it is read.
Files and not arrays are hashed: that holds for arrays on any number of processes, is what the disk holds, and
a restore on other devices compares the same. Orbax leaves values above 1,024 bytes without a checksum of its
own.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm_jax.errors import UserError
from cm_jax.storage import bounded, digests, whole

FORMAT = 2  # of a checkpoint; 1 had no seal, and no config
SEAL = "sha256.json"
# Where arrays were, which a restore does not ask; when all was complete, which Orbax writes after the seal.
_NO_CONTENT = ("_sharding", "_CHECKPOINT_METADATA", "commit_success.txt")


class NewerFormat(UserError):
  """A checkpoint that is right, for a newer version."""


def seal(folder: Path) -> None:
  """Write the sha256 of all that a step's folder holds into it.

  Raises:
    OSError: A file cannot be read back.
  """
  found = digests.of_folder(folder, (*_NO_CONTENT, SEAL))
  lost = [name for name, digest in found.items() if digest is None]
  if lost:
    raise OSError(f"{folder / lost[0]} cannot be read back")
  whole.write(folder / SEAL, json.dumps(found, indent=0))


def irregular(folder: Path) -> str | None:
  """Return the name of what in a step's folder is neither a file nor a folder of its own; None if all is.

  To read a pipe or a device never ends, and no item is a link to a folder elsewhere.
  """
  waiting = [folder]
  while waiting:
    with contextlib.suppress(OSError):  # what is gone, or closed to us, is found by who reads it
      for entry in sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
          waiting.append(Path(entry.path))
        elif not entry.is_file() and os.path.lexists(entry.path):
          return Path(entry.path).relative_to(folder).as_posix()
  return None


def check_regular(checkpoints: Path, steps: Sequence[int]) -> None:
  """Check that Orbax, which looks into every step, can read what is there to its end.

  Raises:
    UserError: Names what is `irregular`.
  """
  for folder in (checkpoints / str(step) for step in steps):
    if name := irregular(folder):
      raise UserError("checkpoint", str(folder / name), f"a regular file (move {folder} away to do without)")


def damage(folder: Path, items: Sequence[str]) -> str | None:
  """Return what of some items of a step's folder is not as it was written; None if all is.

  A folder without a seal is one of format 1, which had none, as far as this can tell.
  """
  if name := irregular(folder):
    return f"{name} is no regular file"
  if not (folder / SEAL).exists():
    return None
  try:
    expected = bounded.read_object(folder / SEAL, "the sha256 of the checkpoint's files")
  except UserError as error:
    return f"{SEAL}: {error.value}"
  counts = {name: str(digest) for name, digest in expected.items() if name.partition("/")[0] in items}
  without = sorted(set(items) - {name.partition("/")[0] for name in counts})
  if without:
    return f"{SEAL} does not know {without[0]}"
  differing = digests.differing(folder, counts)
  if not differing:
    return None
  more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
  is_gone = not (folder / differing[0]).exists()
  return f"{differing[0]}{more} is {'gone' if is_gone else 'not what was written'}"


def read_extra(folder: Path) -> dict[str, Any]:
  """Return the JSON item of a step's folder.

  Raises:
    NewerFormat: It is of a newer format.
    UserError: It is unreadable, or not what was written.
  """
  extra = bounded.read_object(folder / "extra" / "metadata", "what training wrote")
  number = extra.get("format")
  if type(number) is not int or number < 1:
    raise UserError("extra: format", number, f"1 to {FORMAT}")
  if number > FORMAT:
    expected = f"format 1 to {FORMAT}, not {number}: a newer version of cm_jax wrote it"
    raise NewerFormat("checkpoint", str(folder), expected)
  if number > 1 and not (folder / SEAL).exists():
    raise UserError(SEAL, "gone", "there")
  kinds: dict[str, Any] = {"fingerprint": str, "seconds": (int, float)}
  for key in ("data_offset", "rollbacks"):
    if type(extra.get(key, 0)) is not int or extra.get(key, 0) < 0:
      raise UserError(f"extra: {key}", extra[key], "an integer, 0 or more")
  kinds |= {"config_sha256": str, "config": dict} if number > 1 else {}
  for key, kind in kinds.items():
    if not isinstance(extra.get(key), kind):
      raise UserError(f"extra: {key}", extra.get(key), "what training wrote")
  return extra


def averages(folder: Path) -> list[str]:
  """Return the names of the averages in a step's folder, sorted; not by Orbax, which would ask where their
  arrays were.

  Raises:
    UserError: It is unreadable.
  """
  file, expected = folder / "averages" / "_METADATA", "what Orbax says of the arrays"
  described = bounded.read_object(file, expected, bounded.LARGE)
  try:
    return sorted({leaf["key_metadata"][0]["key"] for leaf in described["tree_metadata"].values()})
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise UserError(str(file), f"{type(error).__name__}: {error}", expected) from error
