"""Whether a stored config has the form of one, before anything reads it: whatever a file says, one line."""

from collections.abc import Mapping
from typing import Any

from cm_jax import config as config_lib
from cm_jax.errors import UserError

# What every version wrote; what came later has a default.
SECTIONS = (
  *("accumulation", "averages", "batch_size", "data", "init", "mesh", "network", "noise", "objective"),
  *("optimizer", "precond", "run", "sampler", "seed", "teacher"),
)
_NAMES: Mapping[type, str] = {
  bool: "true or false", int: "an integer", float: "a number", str: "a text", list: "a list",
  dict: "a section, an object",
}  # fmt: skip


def check_form(stored: Mapping[str, Any]) -> None:
  """Check that a config.json has the sections of a run's config and their keys the types of the defaults.

  What components make of theirs is for them to say.

  Raises:
    UserError: Names the first key that is missing or of another type.
  """
  for key in SECTIONS:
    if key not in stored:
      raise UserError(f"config.{key}", "missing", "there, as training wrote it in config.json")
  _check_names(stored, "config")
  _check_types(stored, config_lib.plain_json(config_lib.default()), "config")
  shape = stored["data"].get("image_shape", [])  # [] where no data were opened yet
  if len(shape) not in (0, 3) or not all(type(size) is int and size > 0 for size in shape):
    raise UserError("config.data.image_shape", shape, "[height, width, channels]")


def _check_names(section: Mapping[str, Any], where: str) -> None:
  for key, value in section.items():
    if "." in key or not key:
      raise UserError(f"{where}.{key}", value, 'a key without "."')
    if key == "name" and not isinstance(value, str):
      raise UserError(f"{where}.name", value, "the name of a component")
    for inner in value if isinstance(value, list) else [value]:
      if isinstance(inner, Mapping):
        _check_names(inner, f"{where}.{key}")


def _check_types(section: Mapping[str, Any], like: Mapping[str, Any], where: str) -> None:
  for key, default in like.items():
    value = section.get(key, default)
    is_component = isinstance(default, dict) and "name" in default
    if is_component and isinstance(value, str):  # by its name alone
      continue
    right: tuple[type, ...] = (float, int) if isinstance(default, float) else (type(default),)
    is_other = not isinstance(value, right) or (isinstance(value, bool) and bool not in right)
    if default is not None and is_other:
      raise UserError(f"{where}.{key}", value, _NAMES[type(default)])
    if is_component and "name" not in value:
      raise UserError(f"{where}.{key}", value, 'a section with a "name"')
    if isinstance(default, dict) and not is_component and key not in config_lib.FREE_FORM:
      _check_types(value, default, f"{where}.{key}")
