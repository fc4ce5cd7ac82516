"""What commands share: starting JAX, the flags that name a model and a sampler, and reading them."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from cm_jax import outside
from cm_jax.cli import environment, libraries, signals
from cm_jax.errors import UserError, renamed
from cm_jax.storage import bucket

if TYPE_CHECKING:
  from cm_jax.models import Model
  from cm_jax.types import Sampler


def start(agree_on_the_end: bool = False) -> None:
  """Start JAX: its settings, the job's other processes, the devices.

  Args:
    agree_on_the_end: Leave it to JAX, in a job of several processes, to find the step after which a SIGTERM
      ends them all (`sharding.preempted`).

  Raises:
    UserError: What the environment says of processes or of a platform cannot be.
  """
  libraries.load()
  import jax

  from cm_jax import meetings
  from cm_jax.training import peers, processes

  environment.keep_ours()
  environment.keep_programs()
  job = processes.find(os.environ, processes.tpu_metadata())
  silence = peers.seconds_alone(os.environ)
  processes.join(job, processes.seconds_to_join(os.environ), silence)
  peers.watch(silence)
  meetings.meet()  # before the devices, which JAX starts on all of them together
  environment.check_platform()
  if jax.distributed.is_initialized() and not agree_on_the_end:
    signals.answer()


def define_processes(values: flags.FlagValues) -> None:
  """Declare the flags that say which of several processes this is; most places say it by themselves."""
  text = lambda name, about: flags.DEFINE_string(name, None, about, flag_values=values)
  number = lambda name, about, low: flags.DEFINE_integer(name, None, about, low, flag_values=values)
  text("coordinator", "HOST:PORT of the first of several processes (JAX_COORDINATOR_ADDRESS).")
  number("num_processes", "How many there are (JAX_NUM_PROCESSES).", 1)
  number("process_id", "Which of them this is, from 0 (JAX_PROCESS_ID).", 0)
  number("join_timeout", "Seconds to wait for the others at the start; 300 by default.", 1)
  number("peer_timeout", "Seconds of silence after which another counts as dead; 60 by default.", 10)


def say_processes(values: flags.FlagValues) -> None:
  """Put what the flags of `define_processes` say where `processes.find` looks for it."""
  from cm_jax.training import peers, processes

  names = ("coordinator", "num_processes", "process_id", "join_timeout", "peer_timeout")
  variables = (*processes.EXPLICIT, processes.JOIN_TIMEOUT, peers.TIMEOUT)
  for flag, variable in zip(names, variables, strict=True):
    if values[flag].value is not None:
      os.environ[variable] = str(values[flag].value)


def counted(number: int, what: str) -> str:
  """Write a number of things.

  >>> counted(1, "image"), counted(2000, "image")
  ('1 image', '2,000 images')
  """
  return f"{number:,} {what}{'' if number == 1 else 's'}"


def is_main() -> bool:
  """Whether this is the process that writes and prints."""
  import jax

  return jax.process_index() == 0


def define_weights(values: flags.FlagValues) -> None:
  """Declare the flags that choose weights."""
  flags.DEFINE_string(
    "workdir", None, "Run folder; also the model, unless --model is given.", flag_values=values
  )
  about = "Run or weights folder to take the model from; or digits-cd, https://...#sha256=, hf:owner/name."
  flags.DEFINE_string("model", None, about, flag_values=values)
  define_step(values, "Checkpoint of the run")
  flags.DEFINE_string(
    "average", "ema", "Average of the parameters, or params for the raw ones.", flag_values=values
  )
  flags.DEFINE_string(
    "kind",
    None,
    "diffusion, consistency or flow_map: asked for where an old weights folder does not say it.",
    flag_values=values,
  )


class _Here(flags.ArgumentParser):
  """Reads a path of this machine."""

  syntactic_help = "a path of this machine, or of what is mounted"

  def parse(self, argument: str) -> str:
    """Return it.

    Raises:
      ValueError: It is in an object store.
    """
    if bucket.is_bucket(argument):
      raise ValueError(f"{argument} is not {self.syntactic_help}")
    return argument


def define_here(values: flags.FlagValues, name: str, about: str) -> None:
  """Declare a flag that names what cannot be in an object store: code, which others who may write there would
  choose, and what a library writes as files."""
  flags.DEFINE(_Here(), name, None, about, values, flags.ArgumentSerializer())


class _Step(flags.ArgumentParser):
  """Reads a step, -1 or best."""

  syntactic_help = "a step, -1 for the newest, or best"

  def parse(self, argument: str | int) -> int | str:
    """Return it, a number but for "best".

    Raises:
      ValueError: It is neither.
    """
    if argument == "best" or isinstance(argument, int):
      return argument
    try:
      return int(argument)
    except ValueError:
      raise ValueError(f"expected {self.syntactic_help}") from None

  def flag_type(self) -> str:
    """Return what the help calls it."""
    return "step"


def define_step(values: flags.FlagValues, about: str) -> None:
  """Declare the flag that chooses a checkpoint."""
  text = f"{about}; -1 for the newest, best for the best by config.run.evaluate."
  flags.DEFINE(_Step(), "step", -1, text, values, flags.ArgumentSerializer())


def define_model(values: flags.FlagValues) -> None:
  """Declare the flags that choose weights and a sampler."""
  define_weights(values)
  flags.DEFINE_multi_integer(
    "nfe",
    None,
    "Multistep sampling with the tuned noise levels of so many network evaluations; evaluate takes several.",
    flag_values=values,
  )
  flags.DEFINE_multi_integer(
    "num_steps",
    None,
    "Sample an ODE in so many steps (Heun: 2 n - 1 network evaluations).",
    flag_values=values,
  )
  flags.DEFINE_string(
    "sampler",
    "heun",
    "What --num_steps are steps of: heun, euler, or any other sampler that has a number of steps.",
    flag_values=values,
  )
  define_protocol(values)
  flags.DEFINE_float(
    "guidance",
    None,
    "Guidance scale, for a conditional model; 1 is none.",
    lower_bound=0.0,
    flag_values=values,
  )
  define_seed(values)
  flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1, flag_values=values)


def define_protocol(values: flags.FlagValues) -> None:
  """Declare the flags that say how a model is sampled, where it is not to be as it says itself."""
  about = "Clip to [-1, 1]: x between the steps of multistep sampling, every D of others (--noclip: do not)."
  flags.DEFINE_bool("clip", None, f"{about} By default as the model's own.", flag_values=values)
  about = "How multistep sampling adds noise again: cm, up to the next level, or ect, all of it."
  flags.DEFINE_string("renoise", None, f"{about} By default as the model's own.", flag_values=values)


def define_seed(values: flags.FlagValues, meaning: str = "Sample i depends on (seed, i) only.") -> None:
  """Declare the seed of samples."""
  flags.DEFINE_integer("seed", 0, meaning, lower_bound=0, upper_bound=2**32 - 1, flag_values=values)


def define_overwrite(values: flags.FlagValues) -> None:
  """Declare the flag that `check_new` is given."""
  flags.DEFINE_bool("overwrite", False, "Replace the weights at --out.", flag_values=values)


def check_new(out: str, overwrite: bool) -> None:
  """Check that no weights are replaced that are not to be.

  Args:
    out: A weights folder, or a file of weights.
    overwrite: They may be.

  Raises:
    UserError: There are some.
  """
  from cm_jax.storage import weights

  if not overwrite and (weights.is_weights_folder(out) or os.path.isfile(out)):
    raise UserError("--out", out, "a path that does not exist yet, or --overwrite to replace its weights")


def define_framing(values: flags.FlagValues) -> None:
  """Declare the flags that say how images become squares."""
  text = lambda name, default, about: flags.DEFINE_string(name, default, about, flag_values=values)
  about = "Side of the images in pixels, 1 to 4096; by default as they are."
  flags.DEFINE_integer("resolution", None, about, flag_values=values)
  text("crop", "none", "center, adm, edm or none.")
  text("alpha", "", "Behind transparent parts: white or black; by default they are refused (adm drops them).")
  flags.DEFINE_bool("exif", True, "Turn images as their EXIF data asks.", flag_values=values)


def define_features(values: flags.FlagValues) -> None:
  """Declare the flags that choose what samples are measured by."""
  about = "inception, dinov2-b, dinov2-l, digits or another name of features, or what train-features wrote."
  flags.DEFINE_string("features", None, about, flag_values=values)
  about = "File of the features' weights, where they are not to be fetched."
  flags.DEFINE_string("weights", None, about, flag_values=values)
  flags.DEFINE_string(
    "reference",
    None,
    "Source whose images are the reference; by default what goes with the run's data (digits:train: digits).",
    flag_values=values,
  )


def load(values: flags.FlagValues, step: int | str | None = None, average: str | None = None) -> "Model":
  """Load the model that the flags name; `step` and `average` instead of the flags' if they are given.

  Raises:
    UserError: Neither --model nor --workdir, or nothing to load there.
  """
  from cm_jax.assembly import load_model
  from cm_jax.storage.published import is_own

  path = values.model or values.workdir
  if not path:
    raise UserError("--model", "", "a run or weights folder (or --workdir)")
  if not values.model and not is_own(path):
    expected = "a run folder (config.json, checkpoints/); weights by name or from elsewhere are a --model"
    raise UserError("--workdir", path, expected)
  number = values.step if step is None else step
  return load_model(path, number, average or values.average, kind=values.kind)


def read_samplers(values: flags.FlagValues, model: "Model", sigmas: Sequence[str]) -> "list[Sampler]":
  """Return the samplers that the flags of `define_model` and noise levels ask for; see `choose_samplers`.

  Raises:
    UserError: More than one way is given, values are out of range, or no levels are known for --nfe.
  """
  from cm_jax.sampling import SAMPLERS
  from cm_jax.sampling.choose import choose_samplers

  outside.allow(values.sampler)
  with renamed("name", "sampler"):
    outside.look_up(SAMPLERS, values.sampler)
  num_steps = values.num_steps or ()
  if sigmas and num_steps:
    raise UserError("--num_steps", num_steps[0], "either --sigmas or --num_steps")
  if values.nfe and (sigmas or num_steps):
    raise UserError("--nfe", values.nfe[0], "neither --sigmas nor --num_steps beside it")
  levels = [parse_sigmas(text) for text in sigmas]
  protocol = values.clip, values.renoise
  choose = lambda nfe: choose_samplers(model, levels, num_steps, values.sampler, nfe, *protocol)
  return [sampler for nfe in values.nfe or (None,) for sampler in choose(nfe)]


def parse_sigmas(text: str) -> tuple[float, ...]:
  """Read "80,0.8" as noise levels.

  Raises:
    UserError: Not numbers.

  >>> parse_sigmas("80,0.8")
  (80.0, 0.8)
  """
  try:
    return tuple(float(part) for part in text.split(","))
  except ValueError:
    raise UserError("--sigmas", text, "descending noise levels separated by commas, such as 80,0.8") from None
