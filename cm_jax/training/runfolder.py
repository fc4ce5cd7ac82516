"""The run folder's `config.json`: written once, compared on every resume."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections

from cm_jax.config import content, plain_json
from cm_jax.errors import UserError

NAME = "config.json"


def read_config(workdir: str | Path) -> dict[str, Any] | None:
  """Return the stored config as plain JSON types, or None if the folder has none.

  Raises:
    UserError: The file is not JSON.
  """
  path = Path(workdir) / NAME
  if not path.is_file():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(str(path), str(error), "the JSON config that training wrote") from None


def write_config(workdir: str | Path, config: ml_collections.FrozenConfigDict) -> None:
  """Write `config.json`, whole or not at all, from one process."""
  if jax.process_index() == 0:
    path = Path(workdir) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(plain_json(config), indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


def reconcile(config: ml_collections.ConfigDict, stored: dict[str, Any] | None) -> ml_collections.ConfigDict:
  """Return `config` with what it leaves open (the data's shape, "the newest" checkpoint of a teacher) as the stored run resolved it."""
  resolved = ml_collections.ConfigDict(config)
  if stored is None:
    return resolved
  for section, key, open_value in (
    ("data", "image_shape", ()),
    ("data", "num_classes", 0),
    ("teacher", "step", -1),
    ("init", "step", -1),
  ):
    value = stored.get(section, {}).get(key)
    if value is not None and resolved[section][key] == open_value:
      resolved[section][key] = tuple(value) if isinstance(value, list) else value
  return resolved


def check_config(workdir: str | Path, config: ml_collections.FrozenConfigDict) -> None:
  """Check that a folder is new, or holds a run of the same config outside `run` and `mesh`.

  Raises:
    UserError: Names the first key that differs, and what the folder's run has.
  """
  stored = read_config(workdir)
  if stored is None:
    path = Path(workdir)
    if path.exists() and not path.is_dir():
      raise UserError("--workdir", str(workdir), "a folder, or a path that does not exist yet")
    return
  ours, theirs = _flat(content(config)), _flat(content(stored))
  for key in sorted(ours.keys() | theirs.keys()):
    if ours.get(key) != theirs.get(key):
      expected = f"{theirs.get(key)!r} as in {Path(workdir) / NAME} (only config.run and config.mesh may change; or take another --workdir)"
      raise UserError(f"config.{key}", ours.get(key), expected)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return flat
