"""--config and --config.KEY=VALUE: a config file or a run's stored config, whose every key, defaults
included, can be set by a flag."""

import ast
import importlib.util
import inspect
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from cm_jax import outside
from cm_jax.assembly.complete import complete, current, keys_at
from cm_jax.assembly.identity import flat
from cm_jax.data.sources import is_code
from cm_jax.errors import UserError, one_of
from cm_jax.storage import published, run


def read_file(spec: str) -> ml_collections.ConfigDict:
  """Return what a config file's `get_config()` returns; `FILE.py:ARGUMENT` passes it the argument.

  Where it takes none, `FILE.py:N` makes the run N steps long (`num_images` is N batches).

  Files beside it can be imported: `import digits_edm`. What arguments a file takes its `VARIANTS` say.

  Raises:
    UserError: The file is missing, or fails when it is run.
  """
  argument = spec.partition(":")[2]
  module = _module(spec)
  try:
    takes_it = argument and inspect.signature(module.get_config).parameters
    config = ml_collections.ConfigDict(module.get_config(argument) if takes_it else module.get_config())
    if argument and not takes_it:
      config.num_images = _steps(spec, argument) * config.batch_size
  except UserError as error:
    if error.field == "variant":
      raise UserError("--config", spec, error.expected) from error
    raise
  except Exception as error:  # whatever the user's own code raises
    raise _fails(spec, error) from error
  outside.allow(config)
  return config


def teacher_network(spec: str) -> dict[str, Any] | None:
  """Return the network of the teacher that a config file is written for, its `TEACHER_NETWORK`: what a plan
  takes for the network `teacher` where that is not there; None where it names none.

  Raises:
    UserError: The file is missing, or fails when it is run.
  """
  return vars(_module(spec)).get("TEACHER_NETWORK")


def _module(spec: str) -> types.ModuleType:
  path = find_config(spec.partition(":")[0])
  outside.look_beside(path)
  module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
  if module_spec is None or module_spec.loader is None:
    raise UserError("--config", spec, "a Python file with get_config()")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except UserError:
    raise
  except Exception as error:
    raise _fails(spec, error) from error
  return module


def _fails(spec: str, error: Exception) -> UserError:
  expected = f"a Python file with get_config() ({type(error).__name__}: {error})"
  return UserError("--config", spec, expected)


def _steps(spec: str, argument: str) -> int:
  if not argument.isdecimal() or not 0 < int(argument) < 10**12:
    expected = "a file whose get_config() takes an argument, or a number of steps behind the colon"
    raise UserError("--config", spec, expected)
  return int(argument)


def find_config(given: str) -> str:
  """Return the path of a config file: as given, or of those that come with cm_jax, `configs/NAME.py` or NAME.

  Raises:
    UserError: Neither is there.
  """
  if Path(given).is_file():
    return given
  ours = our_configs()
  name = given.removeprefix("./").removeprefix("configs/")
  name += "" if name.endswith(".py") else ".py"
  if name in ours:
    return ours[name]
  named = one_of([f"configs/{known}" for known in ours], given) if ours else "none are installed"
  raise UserError("--config", given, f"a Python file with get_config(); cm_jax has {named}")


def our_configs() -> dict[str, str]:
  """Return the paths of the configs that come with cm_jax, by name: of the checkout, or installed."""
  for folder in published.config_folders():
    if (folder / "digits_edm.py").is_file():
      return {path.name: str(path) for path in sorted(folder.glob("*.py"))}
  return {}


def read_stored(workdir: str) -> ml_collections.ConfigDict:
  """Return the config stored in a run folder, as this version writes it.

  Raises:
    UserError: The folder holds no run.
  """
  stored = run.read_config(workdir)
  if stored is None:
    raise UserError("--config", "", f"a config file, since {workdir} holds no run to go on with")
  return current(stored)


def check_code_is_given(config: ml_collections.ConfigDict, arguments: Sequence[str]) -> None:
  """Check that code is named by one of the arguments, as a component or a data source: a run may be somebody
  else's.

  Args:
    config: Of a stored run, with the arguments' overrides.
    arguments: `--config.KEY=VALUE`.

  Raises:
    UserError: Only the stored config names it.
  """
  for key, value in flat(config.to_dict()).items():
    if key != "data.source" and outside.not_named(value):
      expected = f"to be given again, as --config.{key}={value}: it runs code, as no stored run may"
      raise UserError(f"config.{key}", value, expected)
  keys = [argument.lstrip("-").partition("=")[0] for argument in arguments]
  source = config.get("data", {}).get("source", "")
  if is_code(source) and "config.data.source" not in keys:
    expected = f"to be given again, as --config.data.source={source}: it runs code, as no stored run may"
    raise UserError("config.data.source", source, expected)


def override(config: ml_collections.ConfigDict, arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Return a config with the keys of `--config.KEY=VALUE` arguments set; a VALUE has the type of what it
  replaces.

  A key need not be in the config itself: any field of a component can be set, also of one that an argument
  before it chose (`--config.objective=consistency --config.objective.drift=monte_carlo`), or be a new average
  or number of evaluations (`--config.averages.wide=power`). Another `name` for a section leaves what the
  section says beside it; another section, `--config.network=dit`, does not.

  Raises:
    UserError: A key that is not there, naming the nearest one; a value of another type.
  """
  whole = complete(config)
  result = ml_collections.ConfigDict(config)
  for argument in arguments:
    path, _, text = argument.lstrip("-").partition("=")
    keys = path.split(".")[1:]
    section: Any = whole
    for depth, key in enumerate(keys):
      known = keys_at(whole, keys[:depth])
      is_new = depth == 1 and keys[0] in OPEN and (len(keys) == 2 or keys[2:] == ["name"])
      if key not in known and not is_new:
        raise UserError(f"--{path}", text, _elsewhere(whole, keys) or one_of(known, key))
      section = known.get(key)
    value = _parsed(argument, section, text)
    outside.allow(value)
    _set(result, keys, value)
    whole = complete(result)  # another component has other keys
  return result


# Sections whose keys are names of one's own: of averages, and numbers of network evaluations.
OPEN = ("averages", "sigmas_by_nfe")


def _elsewhere(whole: ml_collections.ConfigDict, keys: Sequence[str]) -> str:
  """Say where a key is that was looked for in another place; nothing, if there is no one such place.

  >>> _elsewhere(ml_collections.ConfigDict({"optimizer": {"b1": 0.9}}), ["b1"])
  "'config.optimizer.b1' (did you mean it?)"
  """
  found = [path for path in flat(whole.to_dict()) if path.endswith("." + ".".join(keys))]
  return f"{'config.' + found[0]!r} (did you mean it?)" if len(found) == 1 else ""


def _parsed(argument: str, old: Any, text: str) -> Any:
  """Return the value that an argument gives a key, read as config_flags reads it."""
  field = argument.partition("=")[0]
  if isinstance(old, ml_collections.ConfigDict) and "name" in old:  # another component
    if text.lstrip().startswith("{"):
      return _component(field, text)
    is_inner = field.count(".") > 1  # at the top level a section stays a section
    return text if is_inner else ml_collections.ConfigDict({"name": text})
  if old is None:  # config_flags cannot tell what it is to be
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError):
      return text
  values = flags.FlagValues()
  # Under a name that it can read: numbers, keys of sigmas_by_nfe, are none to it.
  alone, holder = ml_collections.ConfigDict({"value": old}), f"--config.value={text}"
  try:
    config_flags.DEFINE_config_dict("config", alone, flag_values=values, sys_argv=["cm_jax", holder])
    values(["cm_jax", holder])
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    reason = str(error).partition(f"{holder}: ")[2] or str(error)  # absl repeats the flag
    raise UserError(field, text, f"a value such as {old!r} ({reason})") from None
  value: Any = alone.value
  return value


def _component(field: str, text: str) -> ml_collections.ConfigDict:
  """Return a component's section as a person types it.

  Raises:
    UserError: No section.

  >>> _component("--config.network", "{'name': 'dit', 'patch_size': 4}").patch_size
  4
  """
  try:
    section = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    section = None
  if not isinstance(section, dict) or not isinstance(section.get("name"), str):
    raise UserError(field, text, 'a name, or a section such as \'{"name": "teacher"}\'')
  return ml_collections.ConfigDict(section)


def _set(config: ml_collections.ConfigDict, keys: Sequence[str], value: Any) -> None:
  """Set a key, whose value `_parsed` has found fit: it may be of another type, such as a component's name for
  its section."""
  for key in keys[:-1]:
    if not isinstance(config.get(key), ml_collections.ConfigDict):
      name = config.get(key)  # a component by its name alone
      _put(config, key, ml_collections.ConfigDict({} if name is None else {"name": name}))
    config = config[key]
  _put(config, keys[-1], value)


def _put(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  with config.unlocked(), config.ignore_type():
    config[key] = value
