"""Files of anybody's, read in bounded memory: regular files only, so many bytes, JSON of so many levels.

All JSON that lies on a disk is read here, whoever wrote it (SECURITY.md): what it comes to in memory is
estimated before it is parsed, since a list of empty lists takes twenty times its text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bucket, whole

MAX_DEPTH = 32  # levels; a config has 6
MAX_DIGITS = 20  # of an integer
SMALL = 64 << 20  # bytes in memory of a config, a model.json, a record: some MB of text
LARGE = 3 << 29  # of the labels of some millions of images
# At most what a parsed character, a list and an object take, and the item behind a comma or colon.
_COSTS: Mapping[bytes, int] = {b"[": 64, b"{": 240, b",": 64, b":": 64}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def content(path: epath.PathLike, limit: int) -> bytes:
  """Return the bytes of a regular file, if it has no more than `limit`.

  Raises:
    OSError: It is larger, is none (a pipe or a device would be read for ever), or cannot be read.
  """
  whole.check_regular(path)
  with bucket.told(path), whole.place(path).open("rb") as file:
    data = file.read(limit + 1)
  if len(data) > limit:
    raise OSError(f"more than {limit} bytes")
  return data


def read_json(path: epath.PathLike, expected: str, memory: int = SMALL) -> Any:
  """Return what a JSON file says.

  Args:
    path: The file.
    expected: What an error says it should be.
    memory: Bytes, at most, that it may come to.

  Raises:
    UserError: Names the path: it cannot be read, is larger, nested too deep, or no JSON.
  """
  try:
    data = content(path, memory)
  except OSError as error:
    raise UserError(str(path), f"unreadable: {error.strerror or error}", expected) from None
  return parse_json(data, str(path), expected, memory)


def parse_json(data: bytes | str, where: str, expected: str, memory: int = SMALL) -> Any:
  """Return what a JSON text says.

  >>> parse_json(b'{"a": [1, 2]}', "a.json", "an object")
  {'a': [1, 2]}
  >>> parse_json("[" * 100 + "]" * 100, "a.json", "an object")
  Traceback (most recent call last):
  cm_jax.errors.UserError: a.json = more than 32 levels of brackets: expected an object

  Args:
    data: The text.
    where: What to call it in an error.
    expected: What an error says it should be.
    memory: Bytes, at most, that it may come to.

  Raises:
    UserError: It would come to more, is nested deeper than `MAX_DEPTH`, is no JSON, holds half a character.
  """
  try:
    raw = data.encode() if isinstance(data, str) else data
    if (cost := memory_of(raw)) > memory:
      raise ValueError(f"{len(raw)} bytes that would come to {cost >> 20} MB")
    value = json.loads(raw, parse_int=_int)
    _check_depth(value)
    if _SURROGATE.search(raw):  # such text can be written nowhere
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError:
    raise UserError(where, f"more than {MAX_DEPTH} levels of brackets", expected) from None
  except ValueError as error:
    raise UserError(where, str(error), expected) from None
  return value


def parse_object(data: bytes | str, where: str, expected: str, memory: int = SMALL) -> dict[str, Any]:
  """Return what a JSON text says, an object; as `parse_json`.

  Raises:
    UserError: As `parse_json`, or it is no object.
  """
  return _object(parse_json(data, where, expected, memory), where, expected)


def read_object(path: epath.PathLike, expected: str, memory: int = SMALL) -> dict[str, Any]:
  """Return what a JSON file says, an object; as `read_json`.

  Raises:
    UserError: As `read_json`, or it is no object.
  """
  return _object(read_json(path, expected, memory), str(path), expected)


def _object(value: Any, where: str, expected: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise UserError(where, type(value).__name__, expected)
  return value


def memory_of(data: bytes) -> int:
  """Return how many bytes a JSON text comes to when it is parsed, at most.

  >>> memory_of(b"[1]")
  76
  """
  return 4 * len(data) + sum(cost * data.count(sign) for sign, cost in _COSTS.items())


def _check_depth(value: Any) -> None:
  level = [value]
  for _ in range(MAX_DEPTH + 1):
    held = (item for item in level if isinstance(item, (dict, list)))
    level = [inner for item in held for inner in (item.values() if isinstance(item, dict) else item)]
    if not level:
      return
  raise RecursionError


def _int(text: str) -> int:
  if len(text) > MAX_DIGITS:  # as a float it would overflow
    raise ValueError(f"an integer of {len(text)} digits")
  return int(text)
