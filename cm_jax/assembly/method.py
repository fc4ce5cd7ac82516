"""`assemble(config, image_shape, num_classes) -> Method`: what a config says of the maths.
No file, no device, no data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import optax

from cm_jax import config as config_lib
from cm_jax import outside
from cm_jax.assembly.checks import check_augment, check_keys, check_length, check_needs, check_run
from cm_jax.assembly.complete import complete
from cm_jax.assembly.components import OTHERS, call, construct, options_of, split, steps
from cm_jax.assembly.data import framing_of
from cm_jax.assembly.models import build_network
from cm_jax.assembly.tuned import tuned_levels
from cm_jax.data.augment import Augment
from cm_jax.data.preprocess import Preprocess
from cm_jax.diffusion.precision import check_precision
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError, one_of, within
from cm_jax.models import Method
from cm_jax.networks import NETWORKS, frozen
from cm_jax.objectives import OBJECTIVES
from cm_jax.sampling import SAMPLERS
from cm_jax.training.averages.decays import DECAYS
from cm_jax.training.optim import OPTIMIZERS, Optimizer
from cm_jax.training.step import state_shapes
from cm_jax.types import Array, Decay, Needs, NoiseRange, Objective, Params, Sampler


class Parts(NamedTuple):
  """The components of a config that know nothing of the images."""

  noise: NoiseRange
  objective: Objective
  averages: dict[str, Decay]
  recipe: Optimizer
  sampler: Sampler
  augment: Augment | None


def assemble(
  config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> Method:
  """Make the components of a config for images of a shape and check them against each other.

  Every shape of the network and of the optimiser's state is worked out, abstractly.

  Args:
    config: From `cm_jax.config.default()`, changed.
    image_shape: (H, W, C).
    num_classes: Of the data; taken if `config.data.conditional`.

  Raises:
    UserError: Anything about the config that would not do; names the key.
  """
  parts = make_parts(config)
  whole = complete(config)
  height, width, channels = image_shape
  shape = (int(height), int(width), int(channels))
  whole.data.image_shape, whole.data.num_classes = shape, num_classes if config.data.conditional else 0
  student, init_net = build_network(
    config.network, config.precond, parts.noise, shape, whole.data.num_classes, config.matmul_precision
  )
  needs = parts.objective.needs
  check_needs(config, needs, student)
  if parts.augment is not None:
    check_augment(config, parts.augment)
  averages = parts.averages | ({} if needs.target_decay is None else {"target": needs.target_decay})
  init = _with_weighting(init_net, parts.objective)
  projection = _projection(config, needs)
  optimizer = parts.recipe(averages, projection, frozen)
  state_shapes(init, optimizer)
  return Method(
    config=ml_collections.FrozenConfigDict(whole), noise=parts.noise, image_shape=shape,
    num_classes=whole.data.num_classes, num_steps=check_length(config), init=init, student=student,
    objective=parts.objective, optimizer=optimizer, learning_rate=parts.recipe.rate(),
    preprocess=Preprocess(config.data.flip, config.data.conditional, parts.augment), sampler=parts.sampler,
    apart=frozen if parts.recipe.elementwise and projection is None else None,
  )  # fmt: skip


def make_parts(config: ml_collections.ConfigDict) -> Parts:
  """Make what knows nothing of the images, and check the names of all keys:
  a typo is told before data is opened.

  Code that the config names as a component, `python:MODULE:CLASS`, is imported: whoever passes on somebody
  else's config has to look for such names first (`outside.not_named`).

  Raises:
    UserError: An unknown name or key, or a value out of range.
  """
  outside.allow(config_lib.plain_json(config))
  check_keys(config, config_lib.default(), "config")
  check_run(config.run)
  framing_of(config)
  check_length(config)
  with within("config"):
    check_precision(config.matmul_precision)
  noise = call(NoiseRange, config.noise, "config.noise")
  batch_size, length = config.batch_size, length_of(config)
  given = {"noise": noise, "length": length}
  objective = construct(OBJECTIVES, config.objective, "config.objective", batch_size, **given)
  name, fields = split(NETWORKS, config.network, "config.network")
  for key in fields:
    if key not in (known := options_of(NETWORKS[name])):
      raise UserError(f"config.network.{key}", fields[key], one_of(known, key) + OTHERS)
  domain = construct(PRECONDS, config.precond, "config.precond", noise=noise).domain
  averages = {
    name: construct(DECAYS, section, f"config.averages.{name}", batch_size)
    for name, section in config.averages.items()
  }
  if not averages:
    raise UserError(
      "config.averages", {}, 'at least one, such as {"ema": {"name": "constant", "mu": 0.9999}}'
    )
  if "target" in averages or "params" in averages:
    expected = "other names: target is the objective's, params the raw parameters'"
    raise UserError("config.averages", sorted(averages), expected)
  recipe = make_recipe(config.optimizer, batch_size, objective.needs.stages, length)
  sampler = construct(SAMPLERS, config.sampler, "config.sampler", **given, domain=domain)
  tuned_levels(config.sigmas_by_nfe, noise)
  augment = call(Augment, config.data.augment, "config.data.augment") if config.data.augment else None
  return Parts(noise, objective, averages, recipe, sampler, augment)


def make_recipe(section: Any, batch_size: int, stages: tuple[int, ...], length: int) -> Optimizer:
  """Return the recipe of an optimiser: its section's fields are the rule's own,
  and those that all rules share.

  Raises:
    UserError: An unknown name or key, or a value out of range.
  """
  name, fields = split(OPTIMIZERS, section, "config.optimizer")
  own = options_of(OPTIMIZERS[name])
  shared = {key: value for key, value in fields.items() if key not in own}
  known = {**own, **options_of(Optimizer)}
  for key in shared:
    if key not in known:
      raise UserError(f"config.optimizer.{key}", shared[key], one_of(known, key))
  mine = {key: value for key, value in fields.items() if key in own}
  rule = call(OPTIMIZERS[name], mine, "config.optimizer", batch_size)
  return call(Optimizer, shared, "config.optimizer", batch_size, rule=rule, stages=stages, length=length)


def length_of(config: ml_collections.ConfigDict) -> int:
  """Return the length of a run in steps, 0 for one without an end."""
  return steps(config.num_images, config.batch_size, "config.num_images")


def _with_weighting(init_net: Callable[[Array], Params], objective: Objective) -> Callable[[Array], Params]:
  """Return init(key) of all that is trained: the network, and the head of the objective's loss if it has
  one."""
  weighting = objective.needs.weighting
  if weighting is None:
    return init_net
  return lambda key: {**init_net(key), "weighting": weighting(jax.random.fold_in(key, 1))}


def _projection(
  config: ml_collections.ConfigDict, needs: Needs
) -> Callable[[optax.Params], optax.Params] | None:
  """Return what is applied to the params after every update of a network with forced weight normalisation:
  its own projection, and that of the loss's head where the head is magnitude-preserving too."""
  project, of_head = NETWORKS[config.network.name].projection, needs.weighting_projection
  if project is None:
    return None
  if of_head is None:
    return lambda params: {**params, "net": project(params["net"])}
  return lambda params: {**params, "net": project(params["net"]), "weighting": of_head(params["weighting"])}
