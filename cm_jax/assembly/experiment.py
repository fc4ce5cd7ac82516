"""`build(config) -> Experiment`: a Method placed on data, devices and teachers."""

import dataclasses

import jax
import ml_collections

from cm_jax.assembly.cautions import cautions
from cm_jax.assembly.checks import check_same_images, check_stages, check_teachers_augment
from cm_jax.assembly.complete import complete
from cm_jax.assembly.components import call, check_named
from cm_jax.assembly.data import open_data, resolve
from cm_jax.assembly.method import Parts, assemble, make_parts
from cm_jax.assembly.mismatches import MAY_DIFFER, TRAINING_ONLY, mismatches
from cm_jax.assembly.models import build_network, check_shapes, load_model, network_of
from cm_jax.assembly.resume import check_same_run
from cm_jax.errors import UserError, renamed, within
from cm_jax.models import Experiment, Method, Model
from cm_jax.sampling.images import sample
from cm_jax.training import sharding
from cm_jax.training.layout import check_rules, read_rules
from cm_jax.training.step import state_shapes
from cm_jax.types import Params

# Fields of a network whose layers start without effect, so that weights without them will do.
ADDED = ("second_time", "guidance_embedding")


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
  config = with_network_of_another(config)
  parts = make_parts(config)
  with within("config.mesh"):
    shape = {key: value for key, value in config.mesh.items() if key != "rules"}
    mesh = call(sharding.make_mesh, shape, "config.mesh")
    rules = read_rules(config.mesh.rules)
  with within("config"):
    sharding.check_batch_size(config.batch_size, config.accumulation, mesh.size)
  source = open_data(config)
  config = resolve(config, source)
  method = assemble(config, config.data.image_shape, config.data.num_classes)
  teacher = _load_teacher(config, parts)
  start = None if resumes else _load_start(config, teacher)
  initial_params = None if start is None else start_from(start, config, method)
  distance = method.objective.needs.distance
  if distance is None:
    distance_params = None
  else:
    with within("config.objective.distance"):
      distance_params = distance.load()
  if rules:
    state = state_shapes(method.init, method.optimizer)
    frozen = {"teacher": None if teacher is None else teacher.params, "distance": distance_params}
    with within("config.mesh"):
      check_rules(rules, {"state": state, **frozen})
  whole = ml_collections.ConfigDict(method.config)
  whole.teacher.step, whole.init.step = config.teacher.step, config.init.step
  wrong = mismatches(whole, method, teacher, start)
  if wrong and config.run.on_mismatch == "error" and not resumes:  # what began already is told
    raise wrong[0]
  told = (*map(str, wrong), *cautions(whole, method, jax.default_backend()))
  return Experiment(
    config=ml_collections.FrozenConfigDict(whole),
    method=method,
    source=source,
    mesh=mesh,
    teacher=teacher,
    initial_params=initial_params,
    distance_params=distance_params,
    check_resume=lambda stored, where: check_same_run(whole, stored, where),
    cautions=told,
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
  network, _ = build_network(  # at the run's own precision, as all that it computes
    teacher.network, teacher.precond, teacher.noise, teacher.image_shape, teacher.num_classes,
    config.matmul_precision,
  )  # fmt: skip
  return dataclasses.replace(teacher, preconditioned=network, matmul_precision=config.matmul_precision)


def with_network_of_another(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Return the config with the network of its teacher or start, where it asks for that by name: without what
  matters to training only, which the config may say beside the name.

  Raises:
    UserError: There is no such model, or the config says more of the network.
  """
  section = config.get("network")
  given = {"name": section} if isinstance(section, str) else dict(section.items())
  name = given.pop("name", None)
  if name not in ("teacher", "init"):
    return config
  whose = "teacher" if name == "init" and config.init.path == "teacher" else name
  for key in given:
    if key not in MAY_DIFFER:
      expected = f"nothing beside the name, since the network is that of config.{whose}.path"
      raise UserError(f"config.network.{key}", given[key], f"{expected}: --config.network={name}")
  if not config[whose].path:
    raise UserError(f"config.{whose}.path", "", f"a model, whose network config.network = {name} is to be")
  with renamed("model", f"config.{whose}.path"):
    theirs = network_of(config[whose].path)
  check_named(theirs, f"the network of config.{whose}.path")
  theirs = {key: TRAINING_ONLY.get(key, value) for key, value in theirs.items()}
  resolved = ml_collections.ConfigDict(config)
  with resolved.ignore_type():
    resolved.network = complete({"network": {**theirs, **given}}).network
  return resolved


def _load(section: ml_collections.ConfigDict, path: str) -> Model:
  with (
    renamed("model", f"{path}.path"),
    renamed("step", f"{path}.step"),
    renamed("average", f"{path}.average"),
  ):
    return load_model(section.path, section.step, section.average)


def _load_start(config: ml_collections.ConfigDict, teacher: Model | None) -> Model | None:
  if not config.init.path:
    return None
  model = teacher
  if config.init.path != "teacher" or model is None:
    model = _load(config.init, "config.init")
    config.init.step = -1 if model.provenance["step"] is None else model.provenance["step"]
  check_same_images("config.init.path", config.init.path, model, config)
  return model


def start_from(model: Model, config: ml_collections.ConfigDict, method: Method) -> Params:
  """Return what a run starts with, from a model's params: heads of the loss, and the layers of a second time
  or a guidance scale that the model does not take, are drawn.

  Raises:
    UserError: Names the first parameter that does not fit.
  """
  where, params = f"config.init.path = {config.init.path}", model.params
  like = jax.eval_shape(lambda: method.init(jax.random.key(0)))
  lacks = [
    field for field in ADDED if config.network.get(field, False) and not model.network.get(field, False)
  ]
  if lacks:
    without = {**config.network.to_dict(), **dict.fromkeys(lacks, False)}
    shape, classes = tuple(config.data.image_shape), config.data.num_classes
    _, init_net = build_network(without, config.precond, method.noise, shape, classes)
    check_shapes(params, jax.eval_shape(lambda: init_net(jax.random.key(0))), where)
  else:
    check_shapes(params, {"net": like["net"]}, where)
  if set(like) == {"net"} and not lacks:
    return params
  drawn = jax.jit(method.init)(jax.random.key(config.seed))
  return {**drawn, "net": _over(drawn["net"], params["net"])}


def _over(drawn: Params, params: Params) -> Params:
  """Return a tree of params, with what only `drawn` has."""
  if not isinstance(drawn, dict):
    return params
  return {key: _over(value, params[key]) if key in params else value for key, value in drawn.items()}
