"""What a prepared set may be: files, that name none but its own classes, since TensorFlow Datasets imports
every class that they mention."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cm_jax.errors import UserError
from cm_jax.storage import bounded

_OWN = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+", re.ASCII)
_KEYS = ("pythonClassName", "python_class_name")  # protobuf reads either
_FILES = ("features.json", "dataset_info.json")
_LEVELS = ("", "*/", "*/*/", "*/*/*/")  # NAME/CONFIG/VERSION, any of which the spec may end with


def check_classes(folder: Path) -> None:
  """Check that the descriptions below a set's folder name only features of TensorFlow Datasets itself.

  Raises:
    UserError: Another class, which reading the set would import; a file that is no JSON.
  """
  for file in (file for level in _LEVELS for name in _FILES for file in sorted(folder.glob(level + name))):
    described = bounded.read_json(file, "what TensorFlow Datasets wrote")
    try:
      foreign = [name for name in _classes(described) if not _is_own(name)]
    except RecursionError:
      foreign = ["a text of too many levels"]
    if foreign:
      expected = "a feature of TensorFlow Datasets itself, tensorflow_datasets.core.features...."
      raise UserError(str(file), foreign[0], f"{expected}: the module of another would be run")


def check_files(folder: Path) -> None:
  """Check that a set's folder holds files and folders only: reading a pipe or a device would never end.

  Raises:
    UserError: Something else.
  """
  for path in (path for level in _LEVELS for path in sorted(folder.glob(f"{level}*"))):
    if path.exists() and not (path.is_dir() or path.is_file()):
      raise UserError(str(path), "a pipe or a device", "a file, as TensorFlow Datasets wrote it")


def _is_own(name: Any) -> bool:
  return isinstance(name, str) and _OWN.fullmatch(name) is not None


def _classes(value: Any) -> Iterator[Any]:
  """Yield every class that a description names, also in a text that is JSON itself."""
  if isinstance(value, dict):
    yield from (value[key] for key in _KEYS if key in value)
    if "type" in value and "content" in value:  # the form before protobuf
      yield value["type"]
  if isinstance(value, (dict, list)):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _classes(item)
  elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
    try:
      inner = json.loads(value)
    except ValueError:  # a quotation, which nobody parses
      return
    yield from _classes(inner)
