"""Code of the person's own: `python:MODULE:NAME`, in a config where a component's name stands.

Naming code runs it. So only who starts a command may name it, in a config file or a flag given now; what a
stored file says (a run's config.json, a model.json) counts only where the same was named now.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import ml_collections

from cm_jax.errors import UserError

SCHEME = "python:"
_named: set[str] = set()  # what was named now
_entered: list[tuple[MutableMapping[str, Any], str]] = []  # which of it entered a registry
_places: list[str] = []  # where it is looked for beside what is installed


def is_code(name: object) -> bool:
  """Say whether a name is one of the person's own code.

  >>> is_code("python:my.losses:Mine"), is_code("consistency")
  (True, False)
  """
  return isinstance(name, str) and name.startswith(SCHEME)


def names_in(value: Any) -> Iterator[str]:
  """Yield every name of code in a value, such as a config.

  >>> list(names_in({"objective": {"name": "python:a:B", "seed": 1}, "sigmas": ["python:c:d"]}))
  ['python:a:B', 'python:c:d']
  """
  if is_code(value):
    yield value
  elif isinstance(value, (Mapping, ml_collections.ConfigDict, ml_collections.FrozenConfigDict)):
    for inner in value.values():
      yield from names_in(inner)
  elif isinstance(value, (list, tuple)):
    for inner in value:
      yield from names_in(inner)


def allow(value: Any) -> None:
  """Take the names of code in a value as named now, by who starts the command or calls the library."""
  _named.update(names_in(value))


def look_beside(file: str | os.PathLike) -> None:
  """Let what lies beside a config file be imported, after all that could be before."""
  folder = os.path.dirname(os.path.abspath(file))
  if folder not in sys.path:
    sys.path.append(folder)
    _places.append(folder)


def not_named(value: Any) -> list[str]:
  """Return the names of code in what a stored file says that were not named now."""
  return [name for name in names_in(value) if name not in _named]


@contextlib.contextmanager
def named_in_the_block() -> Iterator[None]:
  """Forget at the end of the block what was named in it and where it lay: the next command has to name it
  itself."""
  named, entered, places = set(_named), len(_entered), len(_places)
  try:
    yield
  finally:
    _named.intersection_update(named)
    for registry, name in _entered[entered:]:
      registry.pop(name, None)
    del _entered[entered:]
    for folder in _places[places:]:
      with contextlib.suppress(ValueError):  # the person's code took it out itself
        sys.path.remove(folder)
    del _places[places:]


def look_up(registry: Mapping[str, Any], name: object) -> Any:
  """Return what a registry has under a name, or the person's own code of that name; None if neither.

  Own code that was named now enters the registry, and is then one of its kind everywhere.

  Raises:
    UserError: Own code that is not there, fails as it is imported, or is of another kind than the registry's;
      the field is "name".
  """
  if not isinstance(name, str):
    return None
  if name not in registry and name in _named and isinstance(registry, MutableMapping):
    found = imported(name, "name", f"{SCHEME}MODULE:CLASS")
    _check_kind(registry, name, found)
    registry[name] = found
    _entered.append((registry, name))
  return registry.get(name)


def _check_kind(registry: Mapping[str, Any], name: str, found: Any) -> None:
  """Check own code against what a registry holds: what all its classes derive from."""
  known = list(registry.values())
  if not callable(found):
    raise UserError("name", name, f"a class or a function, not {type(found).__name__}")
  if not all(isinstance(kind, type) for kind in known):
    return
  shared = set.intersection(*(set(kind.__mro__) for kind in known))
  base = next(kind for kind in known[0].__mro__ if kind in shared)
  if base is not object and not (isinstance(found, type) and issubclass(found, base)):
    raise UserError("name", name, f"a class that derives from {base.__module__}.{base.__qualname__}")


def imported(spec: str, field: str, form: str) -> Any:
  """Import what `python:MODULE:NAME` names: installed, in the working folder, or beside the config file.

  Args:
    spec: That.
    field, form: For errors: whose value it is, and what would be right.

  Raises:
    UserError: There is no such module or name, or its code fails when it is imported.
  """
  module, _, name = spec.removeprefix(SCHEME).partition(":")
  if not module or not name:
    raise UserError(field, spec, form)
  try:
    return getattr(importlib.import_module(module), name)
  except Exception as error:  # whatever the person's own code raises
    raise UserError(field, spec, f"{form} ({type(error).__name__}: {error})") from error
