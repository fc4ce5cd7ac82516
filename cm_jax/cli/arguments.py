"""The words of a command line before flags are read: values after a space, and `~` for the home folder."""

import os
import re
from collections.abc import Iterable, Sequence

from cm_jax.errors import UserError
from cm_jax.storage import bucket


def is_override(argument: str) -> bool:
  """Say whether an argument sets a key of the config.

  >>> is_override("--config.seed=1"), is_override("--config"), is_override("config.py")
  (True, False, False)
  """
  return argument.startswith(("--config.", "-config."))


def joined(arguments: Sequence[str]) -> list[str]:
  """Return arguments with the value of `--config.KEY VALUE` as one word, `--config.KEY=VALUE`.

  Raises:
    UserError: A key without a value.

  >>> joined(["--config.seed", "1", "--config", "config.py", "--config.noise.rho=7"])
  ['--config.seed=1', '--config', 'config.py', '--config.noise.rho=7']
  """
  found: list[str] = []
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    if is_override(argument) and "=" not in argument:
      if not rest or re.match(r"--?[A-Za-z]", rest[0]):
        raise UserError(argument, "", f"a value: {argument}=VALUE")
      argument = f"{argument}={rest.pop(0)}"
    found.append(argument)
  return found


def spelled(argument: str, known: Iterable[str]) -> str:
  """Return a flag as it is defined, whichever of hyphens and underscores its name is typed with.

  >>> spelled("--all-checkpoints", ["all_checkpoints"]), spelled("--a-b=1-2", ["ab"])
  ('--all_checkpoints', '--a-b=1-2')
  >>> spelled("--sigma_rel=0_1", ["sigma-rel"]), spelled("--noskip_it", ["skip-it"])
  ('--sigma-rel=0_1', '--noskip-it')
  """
  name, sign, value = argument.partition("=")
  if not name.startswith("--"):
    return argument
  flags = {flag.replace("-", "_"): flag for flag in known}
  typed = name.removeprefix("--").replace("-", "_")
  for prefix in ("", "no"):
    if typed.startswith(prefix) and (flag := flags.get(typed.removeprefix(prefix))):
      return f"--{prefix}{flag}{sign}{value}"
  return argument


def at_home(argument: str) -> str:
  """Return an argument with `~` where a path begins as the home folder: shells expand it only at the start of
  a word.

  >>> at_home("--out=~/x.npz") == "--out=" + os.path.expanduser("~/x.npz")
  True
  >>> at_home("--config.data.source=folder:~/photos").endswith("folder:" + os.path.expanduser("~/photos"))
  True
  >>> at_home("--out=a~b")
  '--out=a~b'
  """
  return re.sub(r"(?:(?<=[=:])|^)~[A-Za-z0-9_.-]*(?=/|$)", lambda home: os.path.expanduser(home[0]), argument)


def check_buckets(arguments: Sequence[str]) -> None:
  """Check that every object store that flags name can be reached, before any work.

  Raises:
    UserError: Names the first flag whose store cannot be reached.
  """
  before = ""
  for argument in arguments:
    name, sign, value = argument.partition("=")
    if not sign:
      name, value = before, argument
    if (path := bucket.named_in(value)) is not None:
      try:
        bucket.check(name, path)
      except UserError as error:
        raise UserError(name, value, error.expected) from None
    before = argument
