"""Errors of the person at the keyboard: one line that names the field, the value and what would be right."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

# What content of a wrong form raises where it is used: a text for a number, a list for a section, 10^400.
DAMAGE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class UserError(Exception):
  """Bad input. The command line prints it as one line and exits with `status`;
  nothing has been changed on disk.

  A component names its own field (`s0`, `model_channels`); who knows where it stands puts the path before it
  (`within`: `config.objective.pairs.scales.s0`; the command line: `--sigmas`).

  Args:
    field: What is wrong: the name of a field, or a path.
    value: The value given.
    expected: What would be right.

  >>> print(UserError("config.batch_size", 100, "a multiple of the 8 devices, such as 96"))
  config.batch_size = 100: expected a multiple of the 8 devices, such as 96
  """

  status = 2

  def __init__(self, field: str, value: object, expected: str):
    super().__init__(field, value, expected)
    self.field, self.value, self.expected = field, value, expected

  def __str__(self) -> str:
    value = str(self.value) if isinstance(self.value, (int, float, str, bool)) else repr(self.value)
    return f"{shown(self.field, 400)} = {shown(value, 400)}: expected {shown(self.expected, 1000)}"

  def named(self, field: str) -> "UserError":
    """Return the same error about a field of another name."""
    return type(self)(field, self.value, self.expected)


class TrainingStopped(UserError):
  """Training ended before its last step, through no bad input: exit status 1."""

  status = 1


def shown(text: str, limit: int = 400) -> str:
  """Return text of anybody's as one line for a terminal: its control characters escaped, its middle left out.

  >>> shown("a\\x1b[2J name"), shown("0123456789" * 100, 20)
  ('a\\\\x1b[2J name', '0123456 ... 23456789')
  """
  if len(text) > limit:
    half = (limit - 5) // 2
    text = f"{text[:half]} ... {text[len(text) - limit + half + 5 :]}"
  line = " ".join(text.split())
  return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)


@contextlib.contextmanager
def within(path: str) -> Iterator[None]:
  """Put a path before the fields that the block's errors name; places, such as a file, stay what they are.

  >>> with within("config.noise"):
  ...   raise UserError("rho", 0.5, "at least 1")
  Traceback (most recent call last):
  cm_jax.errors.UserError: config.noise.rho = 0.5: expected at least 1
  """
  try:
    yield
  except UserError as error:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", error.field) or error.field.startswith("config."):
      raise
    raise error.named(f"{path}.{error.field}") from error


@contextlib.contextmanager
def renamed(field: str, name: str) -> Iterator[None]:
  """Let the block's errors about `field` be about `name`, as which the caller knows it.

  >>> with renamed("source", "reference"):
  ...   raise UserError("source", "digit", "digits")
  Traceback (most recent call last):
  cm_jax.errors.UserError: reference = digit: expected digits
  """
  try:
    yield
  except UserError as error:
    if error.field != field:
      raise
    raise error.named(name) from error


@contextlib.contextmanager
def damage_told(field: str, expected: str) -> Iterator[None]:
  """Turn what the block raises over content of a wrong form into an error about `field`, which has it.

  Args:
    field: A file, or what was made of one.
    expected: What would be right.

  >>> with damage_told("model.json", "a JSON object with a network"):
  ...   int("x")
  Traceback (most recent call last):
  cm_jax.errors.UserError: model.json = ValueError: invalid literal for int() with base 10: 'x': expected a
  JSON object with a network
  """
  try:
    yield
  except DAMAGE as error:
    raise UserError(field, f"{type(error).__name__}: {error}", expected) from error


def one_of(names: Iterable[str], given: object) -> str:
  """Say which names are known, the nearest to `given` first.

  >>> one_of(["denoising", "consistency"], "consistancy")
  "'consistency' (did you mean it?) or one of: consistency, denoising"
  """
  known = sorted(map(str, names))
  near = difflib.get_close_matches(str(given)[:100], known, n=1)
  listed = "one of: " + ", ".join(known)
  return f"{near[0]!r} (did you mean it?) or {listed}" if near else listed
