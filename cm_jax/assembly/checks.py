"""What is checked of a config before any work starts, with nothing written."""

from typing import Any

import ml_collections

from cm_jax import config as config_lib
from cm_jax.assembly.complete import complete
from cm_jax.assembly.components import steps
from cm_jax.assembly.mismatches import TRAINING_ONLY
from cm_jax.config import FREE_FORM
from cm_jax.data.augment import Augment
from cm_jax.diffusion.noise import check_seed
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.metrics import METRICS
from cm_jax.models import Model
from cm_jax.types import Needs, Preconditioned

# Of config.run: what is one of a few words
RUN_CHOICES = {
  "on_other_data": ("error", "allow"),
  "on_mismatch": ("error", "allow"),
  "on_skips": ("stop", "rollback"),
}
# Of config.run: 0 switches off, or is no bound
MAY_BE_ZERO = ("num_steps", "keep_every", "num_samples", "snapshot_every", "diagnose_every", "data_workers")


def check_keys(config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict, path: str) -> None:
  """Check the top level and the fixed sections for unknown keys; sections with a `name` are their component's
  to check.

  Raises:
    UserError: Names the key, and the nearest right one; or the key that is missing.
  """
  for key in config:
    if key not in defaults:
      raise UserError(f"{path}.{key}", _short(config[key]), one_of(defaults, key))
  for key in defaults:
    if key not in config:
      raise UserError(f"{path}.{key}", "", "set: start from cm_jax.config.default()")
    is_section = isinstance(defaults[key], ml_collections.ConfigDict)
    if is_section != isinstance(config[key], ml_collections.ConfigDict):
      raise UserError(
        f"{path}.{key}", _short(config[key]), "a section" if is_section else "a value, not a section"
      )
    if is_section and "name" not in defaults[key] and key not in FREE_FORM:
      check_keys(config[key], defaults[key], f"{path}.{key}")
  if path == "config":
    check_seed(config.seed, "config.seed")
  for key in ("batch_size", "accumulation", "num_images"):
    wrong = path == "config" and (isinstance(config[key], bool) or not isinstance(config[key], int))
    if wrong or (path == "config" and config[key] < 0):
      raise UserError(f"config.{key}", config[key], "an integer, 0 or more")


def check_run(run: ml_collections.ConfigDict) -> None:
  """Check `config.run`.

  Raises:
    UserError: A count that is not a positive integer, a word that is none of its choices.
  """
  for key, value in run.items():
    if key in RUN_CHOICES:
      if value not in RUN_CHOICES[key]:
        raise UserError(f"config.run.{key}", value, " or ".join(RUN_CHOICES[key]))
    elif key == "ram_gb":
      if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise UserError("config.run.ram_gb", value, "gigabytes, 0 or more")
    elif key == "evaluate":
      _check_evaluate(value)
    elif isinstance(value, bool) or not isinstance(value, int) or value < (0 if key in MAY_BE_ZERO else 1):
      expected = "a positive integer" if key not in MAY_BE_ZERO else "an integer, 0 or more"
      raise UserError(f"config.run.{key}", value, expected)


def _check_evaluate(section: ml_collections.ConfigDict) -> None:
  for key, least in (("every", 0), ("num", 2), ("nfe", 0)):
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise UserError(f"config.run.evaluate.{key}", value, f"an integer, {least} or more")
  if section.metric not in METRICS:
    raise UserError("config.run.evaluate.metric", section.metric, one_of(METRICS, section.metric))
  if not isinstance(section.features, str) or not section.features:
    raise UserError("config.run.evaluate.features", section.features, "a name of features, or their folder")


def check_length(config: ml_collections.ConfigDict) -> int:
  """Return where training stops, in steps: at the run's length,
  or at `config.run.num_steps` if that is earlier.

  Raises:
    UserError: Neither is given, or the latter is beyond the length.
  """
  if config.batch_size < 1:
    raise UserError("config.batch_size", config.batch_size, "an integer, 1 or more")
  length, stop = steps(config.num_images, config.batch_size, "config.num_images"), config.run.num_steps
  if not length and not stop:
    expected = (
      "the length of the run in images, above 0 (or config.run.num_steps, where a run without an end stops)"
    )
    raise UserError("config.num_images", 0, expected)
  if length and stop > length:
    run = f"config.num_images = {config.num_images}, {length} steps of {config.batch_size} images"
    expected = (
      f"no more than the run's length, {run}; a longer run: config.num_images = {stop * config.batch_size}"
    )
    raise UserError("config.run.num_steps", stop, expected)
  return stop or length


def check_needs(config: ml_collections.ConfigDict, needs: Needs, student: Preconditioned) -> None:
  """Check what an objective asks of the student and the data.

  Raises:
    UserError: A preconditioning without a TrigFlow form; a network without a second time; guidance without
      labels or without a network that takes it; micro-batches that would tear what belongs together.
  """
  if needs.trigflow and student.precond.trigflow is None:
    fitting = [name for name, precond in PRECONDS.items() if precond.trigflow is not None]
    expected = f"{' or '.join(fitting)}, for the objective {config.objective.name}"
    raise UserError("config.precond.name", config.precond.name, expected)
  if needs.second_time and not config.network.get("second_time", False):
    raise UserError("config.network.second_time", False, f"True, for the objective {config.objective.name}")
  if needs.guidance:
    if not config.data.conditional:
      raise UserError("config.data.conditional", False, "True: guidance needs labels")
    if not config.network.get("guidance_embedding", False):
      expected = "True: the student takes the guidance scale as an input"
      raise UserError("config.network.guidance_embedding", False, expected)
  unit = needs.group * max(config.accumulation, 1)
  if config.batch_size % unit:
    expected = f"a multiple of {needs.group} rows that belong together x {config.accumulation} micro-batches"
    raise UserError("config.batch_size", config.batch_size, expected)


def check_stages(config: ml_collections.ConfigDict, needs: Needs, teacher: Model) -> None:
  """Check that a student can become the teacher of the next stage:
  it has to be the teacher's own kind of network.

  Raises:
    UserError: Names the section that differs.
  """
  if not needs.stages:
    return
  alike = lambda section: {name: value for name, value in section.items() if name not in TRAINING_ONLY}
  for key, theirs in (("network", teacher.network), ("precond", teacher.precond)):
    ours, theirs = (
      complete({key: config_lib.plain_json(side)})[key].to_dict() for side in (config[key], theirs)
    )
    if alike(theirs) != alike(ours):
      expected = f"the teacher's, {theirs}: the student becomes the teacher of the next stage"
      raise UserError(f"config.{key}", _short(ours), expected)
  if teacher.noise.sigma_data != config.noise.sigma_data:
    expected = f"the teacher's, {teacher.noise.sigma_data}, likewise"
    raise UserError("config.noise.sigma_data", config.noise.sigma_data, expected)


def check_augment(config: ml_collections.ConfigDict, augment: Augment) -> None:
  """Check that the network is told what augmentation did to an image:
  without the label it leaks into the samples.

  Raises:
    UserError: A network whose augmentation label is not as wide as the augmentation's; images mirrored twice.
  """
  if config.data.flip and augment.xflip:
    expected = f"False: config.data.augment mirrors the images too (xflip = {augment.xflip:g})"
    raise UserError("config.data.flip", True, expected)
  width = config.network.get("augment_dim", 0)
  if width != augment.dim:
    expected = f"{augment.dim}, the width of config.data.augment's label, in a network that takes one"
    raise UserError("config.network.augment_dim", width, f"{expected} (or config.data.augment = {{}})")


def check_teachers_augment(config: ml_collections.ConfigDict, augment: Augment, teacher: Model) -> None:
  """Check that a teacher that is told of augmentation is told of this one.

  Raises:
    UserError: It takes a label of another width.
  """
  theirs = teacher.network.get("augment_dim", 0)
  if theirs not in (0, augment.dim):
    expected = f"transforms with a label of {theirs} numbers, as the teacher takes, not {augment.dim}"
    raise UserError("config.data.augment", config_lib.plain_json(config.data.augment), expected)


def check_same_images(field: str, path: str, model: Model, config: ml_collections.ConfigDict) -> None:
  """Check that a model is of the images that the run trains on.

  Raises:
    UserError: Another shape, or another number of classes.
  """
  ours = (tuple(config.data.image_shape), config.data.num_classes)
  if (model.image_shape, model.num_classes) != ours:
    theirs = f"{model.image_shape} and {model.num_classes} classes"
    raise UserError(field, path, f"a model of {ours[0]} images and {ours[1]} classes, not of {theirs}")
  names = tuple(config.data.class_names)
  if names and model.class_names and names != model.class_names:
    other = next(i for i, (a, b) in enumerate(zip(names, model.class_names, strict=True)) if a != b)
    expected = (
      f"a model whose class {other} is {names[other]}, as in the data, not {model.class_names[other]}"
    )
    raise UserError(field, path, expected)


def _short(value: Any) -> str:
  text = " ".join(str(value).split())
  return text if len(text) <= 60 else text[:57] + "..."
