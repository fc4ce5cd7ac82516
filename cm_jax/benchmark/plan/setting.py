"""What is to be planned, abstractly: a method, and the shapes of everything its train step is given."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from cm_jax.assembly import assemble, build_network, complete
from cm_jax.assembly.experiment import with_network_of_another
from cm_jax.assembly.mismatches import MAY_DIFFER
from cm_jax.assembly.models import network_of
from cm_jax.errors import UserError, renamed
from cm_jax.models import Experiment, Method
from cm_jax.networks.remat import alike_once
from cm_jax.training.step import state_shapes
from cm_jax.types import Params, Preconditioned, TrainState

# Data sets whose images are known without them: shape and classes.
_KNOWN = {
  "digits": ((8, 8, 1), 10),
  "tfds:cifar10": ((32, 32, 3), 10),
  "tfds:cifar100": ((32, 32, 3), 100),
  "tfds:mnist": ((28, 28, 1), 10),
  "tfds:fashion_mnist": ((28, 28, 1), 10),
  "tfds:svhn_cropped": ((32, 32, 3), 10),
  "tfds:imagenet_resized/32x32": ((32, 32, 3), 1000),
  "tfds:imagenet_resized/64x64": ((64, 64, 3), 1000),
}
# Without a backend's own kernels, whose insides a trace does not show.
_PORTABLE = {"kernels": "plain"}
_CLASSES = 1000  # where images have classes and nothing says how many


@dataclasses.dataclass(frozen=True)
class Setting:
  """A method with what stands beside it, as shapes.

  Attributes:
    teacher: Its network, where there is one.
    teacher_params, distance_params: Shapes, or None.
    assumed: What had to be assumed, a line each.
  """

  method: Method
  teacher: Preconditioned | None = None
  teacher_params: Params = None
  distance_params: Params = None
  assumed: tuple[str, ...] = ()

  @functools.cached_property
  def state(self) -> TrainState:
    """Return the shapes of the TrainState."""
    return state_shapes(self.method.init, self.method.optimizer)

  def batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch as a step is given it."""
    shape = self.method.image_shape
    dtype = jnp.uint8 if shape[-1] in (1, 3) else jnp.float32  # else latents
    batch = {"image": jax.ShapeDtypeStruct((size, *shape), dtype)}
    if self.method.num_classes:
      batch["label"] = jax.ShapeDtypeStruct((size,), jnp.int32)
    return batch

  def step_arguments(self, size: int) -> tuple[Any, ...]:
    """Return the shapes of all arguments of a train step."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return self.state, self.batch(size), key, self.teacher_params, self.distance_params

  def with_network(self, **changes: Any) -> "Setting":
    """Return the same with other values of fields of the student's network, of those that it has."""
    method = self.method
    section = _changed(method.config.network.to_dict(), changes)
    student, _ = build_network(
      section, method.config.precond, method.noise, method.image_shape, method.num_classes,
      method.config.matmul_precision,
    )  # fmt: skip
    return dataclasses.replace(self, method=dataclasses.replace(method, student=student))


def _changed(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Return a network's section with other values of those of its fields that it has."""
  whole = complete({"network": section}).network.to_dict()
  return {**whole, **{key: value for key, value in changes.items() if key in whole}}


def of_experiment(experiment: Experiment) -> Setting:
  """Return what is planned of a run that is ready to begin."""
  abstract = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
  teacher, network = experiment.teacher, None
  if teacher is not None:
    network, _ = build_network(
      _changed(teacher.network, _PORTABLE), teacher.precond, teacher.noise, teacher.image_shape,
      teacher.num_classes, teacher.matmul_precision,
    )  # fmt: skip
  setting = Setting(
    experiment.method,
    network,
    None if teacher is None else abstract(teacher.params),
    abstract(experiment.distance_params),
  )
  return setting.with_network(**_PORTABLE)


@alike_once()
def of_config(config: ml_collections.ConfigDict, teacher_network: Mapping[str, Any] | None = None) -> Setting:
  """Return what is planned of a config: no data is opened, no weights are read.

  A teacher's network is taken from its folder if that is there; else it is the one that is given, else the
  student's is assumed.

  Args:
    config: Of the run.
    teacher_network: What the config's author says of the teacher's network, as a section.

  Raises:
    UserError: Anything about the config that would not do, or the shape of its images is not known.
  """
  named = teacher_network if not config.teacher.path else None
  config = with_network_of_another(config) if named is None else _with_network(config, named)
  shape, classes, assumed = images_of(config)
  if named is not None:
    assumed = (
      *assumed,
      f"the teacher's network is {named['name']}, as the config's file says (no --teacher)",
    )
  method = assemble(config, shape, classes)
  needs = method.objective.needs
  teacher, teacher_params = None, None
  if needs.teacher or config.init.path == "teacher":
    section, precond = method.config.network.to_dict(), {"name": "edm"}
    if config.teacher.path:
      with renamed("model", "config.teacher.path"):
        section = network_of(config.teacher.path)
    elif named is not None:
      section = dict(named)
    else:
      section = {key: value for key, value in section.items() if key == "name" or key not in MAY_DIFFER}
      section["dtype"] = config.network.get("dtype", "float32")
      assumed = (*assumed, "the teacher's network is the student's (no config.teacher.path)")
    teacher, init = build_network(
      _changed(section, _PORTABLE), precond, method.noise, method.image_shape, method.num_classes,
      config.matmul_precision,
    )  # fmt: skip
    teacher_params = jax.eval_shape(lambda: init(jax.random.key(0)))
  distance = needs.distance
  distance_params = None if distance is None else distance.abstract()
  return Setting(method, teacher, teacher_params, distance_params, assumed).with_network(**_PORTABLE)


def _with_network(config: ml_collections.ConfigDict, named: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Return a config whose network is that of its teacher with the network that is named."""
  if config.network.get("name") != "teacher":
    return config
  given = {key: value for key, value in config.network.items() if key != "name"}
  resolved = ml_collections.ConfigDict(config)
  with resolved.ignore_type():
    resolved.network = complete({"network": {**named, **given}}).network
  return resolved


def images_of(config: ml_collections.ConfigDict) -> tuple[tuple[int, int, int], int, tuple[str, ...]]:
  """Return (image_shape, num_classes, what was assumed) from what a config says, and from what is known of
  its data set by name.

  Raises:
    UserError: Neither says it.
  """
  data, source = config.data, str(config.data.source)
  known = next(
    (value for name, value in _KNOWN.items() if source == name or source.startswith(f"{name}:")), None
  )
  if len(data.image_shape) == 3:
    height, width, channels = (int(size) for size in data.image_shape)
    shape = (height, width, channels)
  elif data.resolution:
    shape = (data.resolution, data.resolution, 3 if known is None else known[0][-1])
  elif known is not None:
    shape = known[0]
  else:
    expected = (
      f"(height, width, channels) of {source}, which is not opened: --config.data.image_shape=64,64,3"
    )
    raise UserError("config.data.image_shape", "()", expected)
  classes = data.num_classes or (known[1] if known else 0)
  if data.conditional and not classes:
    return shape, _CLASSES, (f"{_CLASSES} classes (no config.data.num_classes)",)
  return shape, classes, ()
