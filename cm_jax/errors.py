"""The one error a user of cm_jax is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A bad input: printed as one line, exit status 2, nothing changed on disk.

  Args:
    field: What is wrong, as the user wrote it (`config.batch_size`, `--sigmas`, a path).
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
    line = f"{self.field} = {value}: expected {self.expected}"
    return " ".join(line.split())


def one_of(names: Iterable[str], given: object) -> str:
  """Say which names are known, the nearest to `given` first.

  >>> one_of(["denoising", "consistency"], "consistancy")
  "'consistency' (did you mean it?) or one of: consistency, denoising"
  """
  known = sorted(map(str, names))
  near = difflib.get_close_matches(str(given), known, n=1)
  listed = "one of: " + ", ".join(known)
  return f"{near[0]!r} (did you mean it?) or {listed}" if near else listed


class TrainingStopped(UserError):
  """Training ended before its last step, through no bad input: exit status 1."""

  status = 1
