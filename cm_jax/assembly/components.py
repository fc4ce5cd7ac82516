"""From a config section to the component it names, and from a component's defaults back to a section.

A section with a `name` is looked up in a registry and its other keys are passed to the component; a name or
key that nothing knows is an error that names the nearest right one, and a key that nothing reads cannot
exist, since every key is passed to something.
"""

import contextlib
import dataclasses
import inspect
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from cm_jax import outside
from cm_jax.diffusion.curriculum import CURRICULA
from cm_jax.diffusion.distances import DISTANCES
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import LEVELS
from cm_jax.diffusion.pairs import PAIRS
from cm_jax.diffusion.solvers import SOLVERS
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.errors import DAMAGE, UserError, one_of, renamed, within
from cm_jax.networks.lpips import LPIPS
from cm_jax.objectives import TARGETS

# Keys of an objective's section that are components themselves, by registry: {"name":
# ..., **fields}, or the name alone.
COMPONENTS: dict[str, Mapping[str, Callable]] = {
  "levels": LEVELS,
  "pairs": PAIRS,
  "scales": CURRICULA,
  "stages": CURRICULA,
  "distance": ChainMap(
    {"lpips": LPIPS}, DISTANCES
  ),  # the learned one is a network: diffusion/ cannot import it
  "target": TARGETS,
  "drift": DRIFTS,
}
FUNCTIONS: dict[str, Mapping[str, Any]] = {"solver": SOLVERS, "weight": WEIGHTS}
# Said of a field that a section's component has not: a section may be of another component than its file's.
OTHERS = "; a section given as a name alone has no fields of another component"
# What assembly passes by itself: no keys of a config. `parent` and `name` are Flax's own.
GIVEN = ("noise", "domain", "length", "rule", "parent", "name")
Section = str | Mapping[str, Any] | ml_collections.ConfigDict | ml_collections.FrozenConfigDict


def construct(
  registry: Mapping[str, Callable], section: Any, path: str, batch_size: int = 1, **given: Any
) -> Any:
  """Make the component that a config section names.

  Args:
    registry: Classes or factories by name.
    section: {"name": ..., **fields}, or a name alone.
    path: Where the section stands, for errors: "config.objective".
    batch_size: Turns keys `*_images` into the fields `*_steps`.
    **given: Fields that do not come from the section; passed on where the component takes them.

  Raises:
    UserError: An unknown name or field, or a field that is missing or out of range.
  """
  name, fields = split(registry, section, path)
  return call(registry[name], fields, path, batch_size, **given)


def split(registry: Mapping[str, Any], section: Any, path: str) -> tuple[str, dict[str, Any]]:
  """Return the name in a section and its other keys.

  Raises:
    UserError: No section, or a name that the registry does not know.
  """
  if not isinstance(section, (str, Mapping, ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
    raise UserError(path, section, f'a name, or a section {{"name": ...}}, {one_of(registry, "")}')
  fields = {"name": section} if isinstance(section, str) else dict(section.items())
  name = fields.pop("name", None)
  with within(path):
    known = outside.look_up(registry, name) is not None
  if not known:
    raise unknown(registry, name, f"{path}.name")
  return str(name), fields


def unknown(registry: Mapping[str, Any], name: Any, where: str) -> UserError:
  """Return the error about a name that a registry does not know, or about code that only a stored file
  names."""
  expected = one_of(registry, name)
  if outside.is_code(name):
    expected = f"to be given again, as --code={name}: it runs code, as no stored file may"
  return UserError(where, name, expected)


def check_named(section: Any, where: str) -> None:
  """Check that the code that a section of a stored file names was named by the user too.

  Raises:
    UserError: Names the first that was not.
  """
  for name in outside.not_named(section):
    raise unknown({}, name, where)


def component_name(section: Any) -> Any:
  """Return the name in a section, which may be the name alone; None if there is no section.

  >>> component_name("edm"), component_name({"name": "heun", "num_steps": 4}), component_name(None)
  ('edm', 'heun', None)
  """
  return section if isinstance(section, str) or section is None else section.get("name")


def call(factory: Callable, section: Any, path: str, batch_size: int = 1, **given: Any) -> Any:
  """Call a factory with the fields of a config section; see `construct`."""
  parameters = inspect.signature(factory).parameters
  arguments: dict[str, Any] = {key: value for key, value in given.items() if key in parameters}
  options = {key: name for key, name in options_of(factory).items() if name not in arguments}
  for key, value in dict(section).items():
    where = f"{path}.{key}"
    if key not in options:
      raise UserError(where, value, one_of(options, key) + (OTHERS if path.count(".") == 1 else ""))
    if value is None and key in COMPONENTS and parameters[options[key]].default is not None:
      raise UserError(where, None, one_of(COMPONENTS[key], ""))
    arguments[options[key]] = _option(key, value, where, batch_size, given)
  required = inspect.Parameter.empty
  missing = [
    key for key, name in options.items() if name not in arguments and parameters[name].default is required
  ]
  if missing:
    choices = f"; {one_of(COMPONENTS[missing[0]], '')}" if missing[0] in COMPONENTS else ""
    raise UserError(f"{path}.{missing[0]}", "", f"set: it has no default{choices}")
  try:
    with _naming(path):
      made = factory(**arguments)
  except (*DAMAGE, MemoryError) as error:
    raise UserError(path, dict(section), f"fields of the right types and sizes ({error})") from error
  for key, name in options.items():  # what the component does not ask itself, it would meet in the maths
    if name in arguments and not _has_type(arguments[name], parameters[name].annotation):
      kind = parameters[name].annotation.__name__
      raise UserError(f"{path}.{key}", arguments[name], f"a value of type {kind}")
  return made


def _has_type(value: Any, annotation: Any) -> bool:
  """Whether a value is of a parameter's type, as far as that is a plain one."""
  if annotation is bool:
    return isinstance(value, (bool, np.bool_))
  if annotation in (int, float):
    plain = (int, np.integer) if annotation is int else (int, float, np.integer, np.floating)
    return isinstance(value, plain) and not isinstance(value, (bool, np.bool_))
  return annotation is not str or isinstance(value, str)


def options_of(factory: Callable) -> dict[str, str]:
  """Return the keys of a component's section, each with the parameter it sets.

  >>> options_of(CURRICULA["stages"])
  {'stage_images': 'stage_steps', 'num_stages': 'num_stages'}
  """
  return {option_name(name): name for name in inspect.signature(factory).parameters if name not in GIVEN}


def option_name(parameter: str) -> str:
  """Return the key of a parameter: durations are images in a config and steps in a component.

  >>> option_name("warmup_steps"), option_name("num_steps")
  ('warmup_images', 'num_steps')
  """
  is_duration = parameter.endswith("_steps") and parameter != "num_steps"
  return parameter.removesuffix("_steps") + "_images" if is_duration else parameter


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  with within(path):
    try:
      yield
    except UserError as error:
      raise error.named(option_name(error.field)) from error


def _option(key: str, value: Any, where: str, batch_size: int, given: dict[str, Any]) -> Any:
  if value is None:
    return None
  if key in COMPONENTS:
    return construct(COMPONENTS[key], value, where, batch_size, **given)
  if key in FUNCTIONS:
    with renamed("name", where):
      function = outside.look_up(FUNCTIONS[key], value)
    if function is None:
      raise unknown(FUNCTIONS[key], value, where)
    return function
  if key.endswith("_images"):
    return steps(value, batch_size, where)
  return tuple(value) if isinstance(value, (list, tuple)) else value


def steps(images: float, batch_size: int, where: str = "images") -> int:
  """Turn a duration in images into whole steps: at least one, unless it is 0.

  >>> steps(51_200_000, 512), steps(100, 512), steps(0, 512)
  (100000, 1, 0)
  """
  if isinstance(images, bool) or not isinstance(images, (int, float)) or not 0 <= images < math.inf:
    raise UserError(where, images, "a number of images, 0 or more")
  return max(1, round(images / batch_size)) if images else 0


def found(registry: Mapping[str, Any], name: Any) -> Any:
  """Return what a registry has under a name; None where `construct` will say what is wrong with it."""
  try:
    return outside.look_up(registry, name)
  except UserError:
    return None


def completed(registry: Mapping[str, Any], section: Any, derived: tuple[str, ...] = ()) -> Any:
  """Return a section with the default of every field that it leaves out;
  what is wrong with it stays for `construct` to say.

  Args:
    registry: Of the component.
    section: {"name": ..., **fields}, or a name alone, which it stays where the component has no fields.
    derived: Parameters that follow from the data, and are no part of a config.

  >>> completed(CURRICULA, {"name": "stages", "num_stages": 8})
  {'name': 'stages', 'num_stages': 8, 'stage_images': 0}
  """
  if not isinstance(section, (str, Mapping, ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
    return section
  fields = {"name": section} if isinstance(section, str) else dict(section.items())
  name = fields.pop("name", None)
  factory = found(registry, name)
  if factory is None:
    return section
  whole = completed_fields(factory, fields, derived)
  return name if isinstance(section, str) and not whole else {"name": name, **whole}


def completed_fields(
  factory: Callable, fields: Mapping[str, Any], derived: tuple[str, ...] = ()
) -> dict[str, Any]:
  """Return the fields of a component with the default of every one that is left out."""
  parameters = inspect.signature(factory).parameters
  whole = dict(fields)
  for key, parameter in options_of(factory).items():
    if parameter in derived:
      continue
    if key not in whole:
      default = _default(factory, parameters[parameter])
      if default is inspect.Parameter.empty:
        continue
      whole[key] = _section_of(key, default)
    if key in COMPONENTS and whole[key] is not None:
      whole[key] = completed(COMPONENTS[key], whole[key])
  return whole


def _default(factory: Callable, parameter: inspect.Parameter) -> Any:
  if dataclasses.is_dataclass(factory):
    field = next(field for field in dataclasses.fields(factory) if field.name == parameter.name)
    if field.default_factory is not dataclasses.MISSING:
      return field.default_factory()
  return parameter.default


def _section_of(key: str, default: Any) -> Any:
  """Return a default as a config says it: a function by its name, a component as its section."""
  if key in FUNCTIONS:
    return next(name for name, function in FUNCTIONS[key].items() if function is default)
  if key in COMPONENTS and default is not None:
    name = next(name for name, factory in COMPONENTS[key].items() if factory is type(default))
    options = options_of(type(default))
    return {
      "name": name,
      **{key: _section_of(key, getattr(default, field)) for key, field in options.items()},
    }
  return default
