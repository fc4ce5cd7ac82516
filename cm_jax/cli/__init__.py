"""The command line: `python -m cm_jax COMMAND ...`; every command is its flags, one call and what it
prints."""

import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence

from absl import flags as absl_flags

from cm_jax.cli import flags, memory, signals
from cm_jax.cli.arguments import at_home, check_buckets, is_override, joined, spelled
from cm_jax.errors import UserError, one_of, shown
from cm_jax.storage import bucket
from cm_jax.training import early, peers
from cm_jax.version import __version__

COMMANDS = {
  "train": "train a model, or go on with a run",
  "plan": "work out what a run will cost: memory, FLOPs, days, from its config alone",
  "sample": "draw images from a run or a weights folder",
  "edit": "inpaint, colourise, enlarge, restore, vary, interpolate images without training",
  "search-steps": "find the best noise levels of few-step sampling",
  "data": "prepare a data set: fetch, crop, resize, check, write",
  "evaluate": "measure a model's samples and append the records to its run",
  "likelihood": "measure bits per dimension of a diffusion model",
  "train-features": "train the classifier whose features measure images of your own",
  "report": "derive tables and pictures from the records of several runs",
  "compare": "put several methods with several seeds side by side",
  "benchmark": "measure train steps, sampling and data on this machine",
  "ema": "make an average of any width from a run's snapshots",
  "convert": "turn a published checkpoint, or a run, into a weights folder",
}

ALONE = ("compare", "data", "plan", "report")  # commands of one process, in whatever job it may be
HELP = ("--help", "-help", "-h", "--helpfull")
MODULE = "python -m cm_jax"  # how docstrings call the program


def program() -> str:
  """Return how the program was called, for what it says to be copied."""
  return "cm_jax" if os.path.basename(sys.argv[0]) == "cm_jax" else MODULE


def usage() -> str:
  """Return the overview of commands."""
  lines = [f"  {name:15} {what}" for name, what in COMMANDS.items()]
  explained = f"{program()} COMMAND --help explains a command, {program()} --version says which this is."
  return "\n".join([f"usage: {program()} COMMAND [--flags]", "", *lines, "", explained])


def version() -> str:
  """Return the versions of this package and of what its numbers depend on."""
  from importlib import metadata

  found = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax")]
  return f"cm_jax {__version__} ({', '.join(found)}, Python {sys.version.split()[0]})"


def run(argv: Sequence[str]) -> int:
  """Run a command line (without the program's name) and return its exit status.

  It is 2 for bad input, with one line on standard error.
  """
  if not argv or argv[0] in ("--help", "-h", "help"):
    print(usage())
    return 0 if argv else 2
  if argv[0] in ("--version", "version"):
    print(version())
    return 0
  with signals.handled():
    return _run(argv[0], list(argv[1:]))


def _run(name: str, rest: list[str]) -> int:
  from cm_jax import outside

  values = absl_flags.FlagValues()
  try:
    if name not in COMMANDS:
      raise UserError("command", name, one_of(COMMANDS, name))
    module, rest = _module(name, rest)
    command = importlib.import_module(f"cm_jax.cli.{module}")
    command.define(values)
    flags.define_processes(values)
    if {"config", "input", "model", "workdir"} & set(values):
      about = "Code of yours that a stored run or model names and that may run: python:MODULE:CLASS."
      absl_flags.DEFINE_multi_string("code", [], about, flag_values=values)
    if any(argument in HELP for argument in rest):
      usage_line = f"usage: {program()} {name} [--flags]"
      explained = (command.__doc__ or "").replace(MODULE, program())
      print(f"{usage_line}\n\n{explained}\n{values.get_help(include_special_flags=False)}")
      return 0
    rest = [at_home(argument) for argument in joined(rest)]
    overrides = [argument for argument in rest if is_override(argument)]
    if overrides and "config" not in values:
      raise UserError(overrides[0].partition("=")[0], overrides[0].partition("=")[2], f"a flag of {name}")
    _parse(values, name, [argument for argument in rest if argument not in overrides])
    flags.say_processes(values)
    check_buckets(rest)
    with memory.told(values), outside.named_in_the_block():
      outside.allow(values.code if "code" in values else [])
      command.main(values, overrides) if "config" in values else command.main(values)
  except UserError as error:
    return _failed(name, str(_as_flag(error, values)), error.status)
  except KeyboardInterrupt as stop:
    stopped = stop if isinstance(stop, signals.Stopped) else signals.Stopped(signal.SIGINT)
    print(f"cm_jax {name}: {stopped}", file=sys.stderr)
    peers.leave("" if stopped.is_agreed else str(stopped), peers.STATUS)
    return stopped.status
  except BrokenPipeError:  # whoever read what is printed, such as head, has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except OSError as error:  # a disk that is full, a place that cannot be read or written
    if error.errno is None:
      return _unexpected(name, error)
    from cm_jax.storage.whole import ROOM

    return _failed(name, str(UserError(str(error.filename or "a file"), error.strerror, ROOM)), 1)
  except Exception as error:
    if bucket.is_theirs(error):
      return _failed(name, f"an object store does not answer any more: {bucket.said(error)}", 1)
    return _unexpected(name, error)
  peers.leave()
  return 0


def _failed(name: str, line: str, status: int) -> int:
  """Say on standard error, and to the other processes of a job, why this one ends."""
  print(f"cm_jax {name}: {line}", file=sys.stderr, flush=True)
  _tell(name, line, status)
  return status


def _unexpected(name: str, error: Exception) -> int:
  """Show an error that is nobody's input, and say it to the other processes of a job; raise it in a process
  alone."""
  if not peers.watched() and (name in ALONE or early.job() is None):
    raise error
  peers.wait(error)  # where another process died, as which a collective operation fails, that is what to say
  traceback.print_exception(error)
  _tell(name, f"{type(error).__name__}: {shown(str(error), 500)}", 1)
  return 1


def _tell(name: str, line: str, status: int) -> None:
  """Say to the other processes of a job, where there are any, why this one ends."""
  if peers.watched():
    peers.leave(line, status)
  elif name not in ALONE and (job := early.job()) is not None:
    early.tell(job, line, status)


def _as_flag(error: UserError, values: absl_flags.FlagValues) -> UserError:
  """Return an error about an argument of the library as one about the flag that set it."""
  known = {flag.replace("-", "_"): flag for flag in values}
  flag = known.get(error.field.replace("-", "_"))
  if flag == "model" and not values.model and "workdir" in values:
    flag = "workdir"  # which is the model, where no other is given
  return error if flag is None else error.named(f"--{flag}")


def _module(name: str, rest: list[str]) -> tuple[str, list[str]]:
  """Return the module of a command, and its arguments without the name of a subcommand."""
  known = SUBCOMMANDS.get(name, {"": name.replace("-", "_")})
  given = rest[0] if rest and not rest[0].startswith("-") and len({*known, ""}) > 1 else ""
  if rest and rest[0] in HELP:
    return next(iter(known.values())), rest
  if given not in known:
    raise UserError(f"command {name}", given, one_of(filter(None, known), given))
  return known[given], rest[1:] if given else rest


# The module of each; "" where the command does without.
SUBCOMMANDS = {
  "compare": {"": "compare", "noise": "compare_noise"},
  "data": {"prepare": "data"},
  "evaluate": {"": "evaluate", "reference": "evaluate_reference"},
}


def _parse(values: absl_flags.FlagValues, name: str, arguments: list[str]) -> None:
  try:
    left = values([name, *(spelled(argument, values) for argument in arguments)])
  except absl_flags.UnrecognizedFlagError as error:
    given = f"--{error.flagname}"
    value = str(error.flagvalue).removeprefix(given).removeprefix("=")  # absl repeats the flag
    raise UserError(given, value, one_of([f"--{flag}" for flag in values], given)) from None
  except absl_flags.Error as error:
    raise _wrong_value(str(error), arguments, values) from None
  if len(left) > 1:
    raise UserError("arguments", " ".join(left[1:]), "flags only, as --flag=value")


def _wrong_value(said: str, arguments: Sequence[str], values: absl_flags.FlagValues) -> UserError:
  """Return what absl says of a flag's value as an error about that flag.

  >>> values = absl_flags.FlagValues()
  >>> holder = absl_flags.DEFINE_integer("num", 1, "How many.", flag_values=values)
  >>> print(_wrong_value("flag --num=0: 0 is not a positive integer", ["--num=0"], values))
  --num = 0: expected a positive integer
  >>> print(_wrong_value("flag --num=x: invalid literal for int()", ["--num=x"], values))
  --num = x: expected an integer
  """
  found = re.fullmatch(r"flag (--([\w-]+))=(.*?): (.*)", said, re.DOTALL)
  if found is None:
    return UserError("flags", " ".join(arguments), said)
  given, name, value, reason = found.groups()
  prefix = f"{value} is not "
  if reason.startswith(prefix):
    return UserError(given, value, reason.removeprefix(prefix))
  parser = values[name].parser
  if isinstance(parser, absl_flags.EnumParser):
    return UserError(given, value, one_of(parser.enum_values, value))
  form = "true or false" if values[name].boolean else parser.syntactic_help
  return UserError(given, value, form or reason)


def main() -> None:
  """Run the program `cm_jax`."""
  # What fails in jaxlib is raised, too. 2, which many set against warnings, has its own lines beside ours.
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2") == "2":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  status = run(sys.argv[1:])
  peers.exit_alone(status)
  sys.exit(status)
