"""When a folder's run and a config are one run: both are completed with today's defaults and compared,
outside run and mesh."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from cm_jax import config as config_lib
from cm_jax.assembly.complete import Config, complete, current
from cm_jax.assembly.components import check_named, component_name, construct
from cm_jax.assembly.form import check_form
from cm_jax.assembly.identity import CLOCK, differing_keys, flat
from cm_jax.assembly.method import length_of, make_recipe
from cm_jax.errors import UserError, damage_told
from cm_jax.objectives import OBJECTIVES
from cm_jax.storage import published
from cm_jax.training.schedules import SCHEDULES
from cm_jax.types import NoiseRange, Objective


def reconcile(
  config: ml_collections.ConfigDict, stored: Mapping[str, Any] | None
) -> ml_collections.ConfigDict:
  """Return `config` with what it leaves open as the stored run resolved it.

  That is the data's shape and classes, "the newest" checkpoint of a teacher or start and the network that is
  theirs, and what a run of before there was a key does in its place.

  Raises:
    UserError: The stored config is of a form that training never wrote.
  """
  resolved = ml_collections.ConfigDict(config)
  if stored is not None:
    with damage_told("config.json", "the config that training wrote"):
      check_form(stored)
      _fill_in(resolved, stored)
  return resolved


def _fill_in(resolved: ml_collections.ConfigDict, stored: Mapping[str, Any]) -> None:
  opened = (
    ("data", "image_shape", ()),
    ("data", "num_classes", 0),
    ("data", "class_names", ()),
    ("teacher", "step", -1),
    ("init", "step", -1),
  )
  if component_name(resolved.get("network")) in ("teacher", "init") and "network" in stored:
    given = {} if isinstance(resolved.network, str) else resolved.network.to_dict()
    check_named(stored["network"], "the network of config.json")
    with resolved.ignore_type():
      resolved.network = {
        **current(stored).network.to_dict(),
        **{k: v for k, v in given.items() if k != "name"},
      }
  is_its_data = resolved.data.source == stored.get("data", {}).get("source")
  for section, key, open_value in opened:
    if section == "data" and not is_its_data:
      continue  # moved data says the same itself, and `check_same_run` says of other data that it is other
    value = stored.get(section, {}).get(key)
    is_folder = key == "step" and published.is_weights(resolved[section].path)  # has no steps
    if value is not None and resolved[section][key] == open_value and not is_folder:
      resolved[section][key] = tuple(value) if isinstance(value, list) else value
  for key, meant in config_lib.BEFORE.items():
    if not isinstance(meant, dict):
      _leave_as_before(resolved, stored, key, meant, config_lib.default())
      continue
    for name, value in meant.items():
      _leave_as_before(resolved[key], stored.get(key, {}), name, value, config_lib.default()[key])


def _leave_as_before(section: Any, stored: Mapping[str, Any], key: str, value: Any, default: Any) -> None:
  """Set what a run of before there was a key does in its place, where the config says nothing else."""
  if key not in stored and section[key] == default[key]:
    section[key] = value


def check_same_run(config: Config, stored: Mapping[str, Any], where: str) -> None:
  """Check that a config is that of a stored run, outside `run`, `mesh` and `PLACES`;
  its length may grow if nothing ends with it.

  Args:
    config: Of the run that is to go on.
    stored: The run's config.json, of any age.
    where: That file.

  Raises:
    UserError: Names the first key that differs, and what the run has.
  """
  ours, theirs = complete(config), current(stored)
  if not theirs.data.class_names:  # a run of before they were kept
    ours.data.class_names = ()
  flat_ours, flat_theirs = (flat(config_lib.content(side)) for side in (ours, theirs))
  differing = differing_keys(flat_ours, flat_theirs)
  rule = "only config.run and config.mesh may change; or take another --workdir"
  for key in differing:
    if key.split(".")[-1] not in ("num_images", *CLOCK):
      raise UserError(f"config.{key}", flat_ours.get(key), f"{flat_theirs.get(key)!r} as in {where} ({rule})")
  if "num_images" in differing:
    _check_growth(ours, theirs, where)
  clock = [key for key in differing if key != "num_images"]
  if clock and _clock(ours) != _clock(theirs):
    key = clock[0]
    raise UserError(f"config.{key}", flat_ours.get(key), f"{flat_theirs.get(key)!r} as in {where} ({rule})")


def followers(config: ml_collections.ConfigDict) -> list[str]:
  """Return the keys of a complete config whose meaning ends with the run's length."""
  optimizer = config.optimizer
  keys = [key for key, value in flat(config_lib.plain_json(config.objective)).items() if value == 0]
  following = [
    f"config.objective.{key}" for key in keys if key.split(".")[-1] in ("total_images", "stage_images")
  ]
  if SCHEDULES[optimizer.schedule].has_length and not optimizer.decay_images:
    following.append("config.optimizer.decay_images")
  return following


def _check_growth(ours: ml_collections.ConfigDict, theirs: ml_collections.ConfigDict, where: str) -> None:
  before, now = theirs.num_images, ours.num_images
  if before and not now > before:
    expected = f"{before} as in {where}, or more (to stop earlier: config.run.num_steps)"
    raise UserError("config.num_images", now, expected)
  ends = followers(ours) or followers(theirs)
  if ends:
    instead = "a longer run: another --workdir, from the start, or with this one as --init"
    expected = f"{before} as in {where}: {', '.join(ends)} ends with it ({instead})"
    raise UserError("config.num_images", now, expected)


def _clock(config: ml_collections.ConfigDict) -> tuple[Objective, Any]:
  """Return what the durations of a config come to: the objective with its curricula,
  and the optimiser's recipe."""
  length = length_of(config)
  noise = NoiseRange(**config.noise)
  objective = construct(
    OBJECTIVES, config.objective, "config.objective", config.batch_size, noise=noise, length=length
  )
  recipe = make_recipe(config.optimizer, config.batch_size, objective.needs.stages, length)
  return objective, recipe.decay_steps or recipe.length
