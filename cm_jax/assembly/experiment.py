"""`build(config) -> Experiment`: a Method placed on data, devices and teachers."""

import jax
import ml_collections

from cm_jax.assembly.checks import check_same_images, check_stages, check_teachers_augment
from cm_jax.assembly.components import call
from cm_jax.assembly.data import open_data, resolve
from cm_jax.assembly.method import Parts, assemble, make_parts
from cm_jax.assembly.models import build_network, check_shapes, load_model
from cm_jax.assembly.resume import check_same_run
from cm_jax.errors import UserError, renamed, within
from cm_jax.sampling.images import sample
from cm_jax.storage import weights
from cm_jax.training import sharding
from cm_jax.types import Experiment, Method, Model, Params


def build(config: ml_collections.ConfigDict, resumes: bool = False) -> Experiment:
  """Make every component of a config and check them against each other,
  before any work starts and with nothing written.

  Args:
    config: Of the run.
    resumes: It has a checkpoint, so that what `init.path` names is not needed, and may be gone.

  Raises:
    UserError: Anything about the config, the data or the teacher that would not do;
      a typo is told before data is opened.
  """
  parts = make_parts(config)
  with within("config.mesh"):
    mesh = call(sharding.make_mesh, config.mesh, "config.mesh")
  with within("config"):
    sharding.check_batch_size(config.batch_size, config.accumulation, mesh)
  source = open_data(config)
  config = resolve(config, source)
  method = assemble(config, config.data.image_shape, config.data.num_classes)
  teacher = _load_teacher(config, parts)
  initial_params = None if resumes else _load_initial(config, method, teacher)
  distance = method.objective.needs.distance
  if distance is None:
    distance_params = None
  else:
    with within("config.objective.distance"):
      distance_params = distance.load()
  whole = ml_collections.ConfigDict(method.config)
  whole.teacher.step, whole.init.step = config.teacher.step, config.init.step
  return Experiment(
    config=ml_collections.FrozenConfigDict(whole),
    method=method,
    source=source,
    mesh=mesh,
    teacher=teacher,
    initial_params=initial_params,
    distance_params=distance_params,
    check_resume=lambda stored, where: check_same_run(whole, stored, where),
    draw=sample,
  )


def _load_teacher(config: ml_collections.ConfigDict, parts: Parts) -> Model | None:
  needs = parts.objective.needs
  if not needs.teacher and config.init.path != "teacher":
    if config.teacher.path:
      expected = "empty: this objective has no teacher (--init starts from weights)"
      raise UserError("config.teacher.path", config.teacher.path, expected)
    return None
  if not config.teacher.path:
    raise UserError("config.teacher.path", "", "a run or weights folder of a diffusion model: --teacher=PATH")
  teacher = _load(config.teacher, "config.teacher")
  check_same_images("config.teacher.path", config.teacher.path, teacher, config)
  config.teacher.step = -1 if teacher.provenance["step"] is None else teacher.provenance["step"]
  check_stages(config, needs, teacher)
  if parts.augment is not None:
    check_teachers_augment(config, parts.augment, teacher)
  return teacher


def _load(section: ml_collections.ConfigDict, path: str) -> Model:
  with (
    renamed("model", f"{path}.path"),
    renamed("step", f"{path}.step"),
    renamed("average", f"{path}.average"),
  ):
    return load_model(section.path, section.step, section.average)


def _load_initial(config: ml_collections.ConfigDict, method: Method, teacher: Model | None) -> Params | None:
  if not config.init.path:
    return None
  model = teacher
  if config.init.path != "teacher" or model is None:
    model = _load(config.init, "config.init")
    config.init.step = -1 if model.provenance["step"] is None else model.provenance["step"]
  check_same_images("config.init.path", config.init.path, model, config)
  return start_from(model.params, config, method)


def start_from(params: Params, config: ml_collections.ConfigDict, method: Method) -> Params:
  """Return what a run starts with, from a network's params: heads of the loss, and the layers of a second
  time that the params lack, are drawn.

  Raises:
    UserError: Names the first parameter that does not fit.
  """
  where = f"config.init.path = {config.init.path}"
  like = jax.eval_shape(lambda: method.init(jax.random.key(0)))
  lacks_time = config.network.get("second_time", False) and not _fits(params, like["net"])
  if lacks_time:
    one_time = {**config.network.to_dict(), "second_time": False}
    shape, classes = tuple(config.data.image_shape), config.data.num_classes
    _, init_net = build_network(one_time, config.precond, method.noise, shape, classes)
    check_shapes(params, jax.eval_shape(lambda: init_net(jax.random.key(0))), where)
  else:
    check_shapes(params, {"net": like["net"]}, where)
  if set(like) == {"net"} and not lacks_time:
    return params
  drawn = jax.jit(method.init)(jax.random.key(config.seed))
  return {**drawn, "net": _over(drawn["net"], params["net"])}


def _fits(params: Params, like: Params) -> bool:
  return set(weights.flatten(params["net"])) == set(weights.flatten(like))


def _over(drawn: Params, params: Params) -> Params:
  """Return a tree of params, with what only `drawn` has."""
  if not isinstance(drawn, dict):
    return params
  return {key: _over(value, params[key]) if key in params else value for key, value in drawn.items()}
