"""The options of a case's meta.json: each is known and acted on, or fails by name."""

import types
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class UnknownOption(ValueError):
  """An option, or a value of one, that nothing here acts on; the message names it."""


def read(given: Mapping[str, Any] | None, where: str, **known: Any) -> types.SimpleNamespace:
  """Return options by name, with the peer's defaults for those left out.

  Args:
    given: Of meta.json.
    where: Whose they are, for the error.
    **known: Every option that is acted on, with the default of the peer's function.

  Raises:
    UnknownOption: Another one.

  >>> read({"rho": 5}, "heun", rho=7, sigma_min=0.002)
  namespace(rho=5, sigma_min=0.002)
  >>> read({"guidance": 2.0}, "heun", rho=7)
  Traceback (most recent call last):
  tests.golden.options.UnknownOption: heun: option guidance = 2.0 is not known here (only rho)
  """
  for name, value in (given or {}).items():
    if name not in known:
      raise UnknownOption(
        f"{where}: option {name} = {value!r} is not known here (only {', '.join(known) or 'none'})"
      )
  return types.SimpleNamespace(**{**known, **(given or {})})


def choice(value: Any, known: Mapping[str, T], where: str) -> T:
  """Return what a word of meta.json stands for, in any case of letters.

  Raises:
    UnknownOption: It is none of the known ones.
  """
  if str(value).lower() not in known:
    raise UnknownOption(f"{where} = {value!r} is not known here (only {', '.join(known)})")
  return known[str(value).lower()]
