"""Configs made complete: every default of every component written out,
and the configs of older versions brought to this one.

A run stores its config so, and a later change of a default cannot change an old run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import ml_collections

from cm_jax import config as config_lib
from cm_jax.assembly.components import COMPONENTS, completed, completed_fields, found, options_of
from cm_jax.assembly.form import check_form
from cm_jax.data.augment import Augment
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import damage_told
from cm_jax.networks import NETWORKS
from cm_jax.objectives import OBJECTIVES
from cm_jax.sampling import SAMPLERS
from cm_jax.storage.run import FORMAT
from cm_jax.training.averages.decays import DECAYS
from cm_jax.training.optim import OPTIMIZERS, Optimizer
from cm_jax.training.schedules import SCHEDULES
from cm_jax.types import NoiseRange

# Fields of a network that follow from the data. `out_channels` is a field only where a network gives a
# variance too.
DERIVED = ("img_resolution", "in_channels", "out_channels", "label_dim")
NAMED: dict[str, Mapping[str, Any]] = {
  "network": NETWORKS, "precond": PRECONDS, "objective": OBJECTIVES, "sampler": SAMPLERS,
}  # fmt: skip
Config: TypeAlias = Mapping[str, Any] | ml_collections.ConfigDict


def complete(config: Config) -> ml_collections.ConfigDict:
  """Return a config with the default of every field of every component written out.

  What is wrong with it stays as it is, for `assemble` to say.

  >>> complete(config_lib.default()).sampler.S_churn
  0.0
  """
  whole = config_lib.plain_json(config)
  for key, registry in NAMED.items():
    if key in whole:
      whole[key] = completed(registry, whole[key], DERIVED)
  if isinstance(whole.get("averages"), dict):
    whole["averages"] = {name: completed(DECAYS, section) for name, section in whole["averages"].items()}
  if isinstance(whole.get("noise"), dict):
    whole["noise"] = completed_fields(NoiseRange, whole["noise"])
  optimizer = whole.get("optimizer")
  if isinstance(optimizer, dict) and (rule := found(OPTIMIZERS, optimizer.get("name"))) is not None:
    whole["optimizer"] = completed_fields(Optimizer, completed_fields(rule, optimizer), ("stages",))
  data = whole.get("data")
  if isinstance(data, dict) and isinstance(data.get("augment"), dict) and data["augment"]:
    data["augment"] = completed_fields(Augment, data["augment"])
  return ml_collections.ConfigDict(_tupled(config_lib.plain_json(whole)))


def keys_at(config: ml_collections.ConfigDict, path: Sequence[str]) -> dict[str, Any]:
  """Return the keys of a section of a complete config, with their values: those that its component has to be
  given too, which are None until then. What is no section has none.

  >>> config = complete({"objective": {"name": "consistency"}})
  >>> sorted(keys_at(config, ["objective"]))[:5]
  ['distance', 'drift', 'name', 'pairs', 'solver']
  """
  section: Any = config
  for key in path:
    section = section.get(key) if isinstance(section, ml_collections.ConfigDict) else None
  registry: Mapping[str, Any] = COMPONENTS.get(path[-1], {}) if path else {}
  if len(path) == 1:
    registry = NAMED.get(path[0], registry)
  elif len(path) == 2 and path[0] == "averages":  # whose names are the config's own
    registry = DECAYS
  if registry and (section is None or isinstance(section, str)):
    section = ml_collections.ConfigDict({"name": section})
  if not isinstance(section, ml_collections.ConfigDict):
    return {}
  factory = found(registry, section.get("name"))
  options = () if factory is None else options_of(factory)
  return {**dict.fromkeys(options), **dict(section.items())}


def current(stored: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Return a stored config of any age as this version writes it: migrated, complete,
  without what it says of itself.

  Raises:
    UserError: It has not the form of one.
  """
  with damage_told("config.json", "the config that training wrote"):
    config = config_lib.plain_json(stored)  # of a config that was never stored, too
    check_form(config)
    return _current(config)


def _current(config: dict[str, Any]) -> ml_collections.ConfigDict:
  for number in range(config.pop("format", 1), FORMAT):
    config = MIGRATIONS[number](config)
  for about in ("config_sha256", "kind"):
    config.pop(about, None)
  for key, default in config_lib.plain_json(config_lib.default()).items():
    is_plain_section = isinstance(default, dict) and "name" not in default and key not in config_lib.FREE_FORM
    if is_plain_section:  # a section without a component: with keys newer than the run
      config[key] = {**default, **config_lib.BEFORE.get(key, {}), **config.get(key, {})}
    elif key not in config:
      config[key] = config_lib.BEFORE.get(key, default)
  return complete(config)


def _tupled(value: Any) -> Any:
  """Return a value with tuples for lists: what a config says by hand, and config_flags overrides."""
  if isinstance(value, dict):
    return {key: _tupled(item) for key, item in value.items()}
  return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _with_length(config: dict[str, Any]) -> dict[str, Any]:
  """Format 1 had no `num_images`: its length is the end of its decay or curriculum, else it had none (0)."""
  optimizer = config.get("optimizer", {})
  shape = SCHEDULES.get(optimizer.get("schedule"))
  if shape is not None and shape.to_zero and optimizer.get("decay_images"):
    return {**config, "num_images": optimizer["decay_images"]}
  ends = list(_curriculum_ends(config.get("objective", {})))
  stop = config.get("run", {}).get("num_steps", 0) * config.get("batch_size", 0)
  return {**config, "num_images": max(*ends, stop) if ends else 0}


def _curriculum_ends(section: Any):
  if not isinstance(section, dict):
    return
  if section.get("total_images"):
    yield section["total_images"]
  if section.get("name") == "stages" and section.get("stage_images"):
    yield section["stage_images"] * section["num_stages"]
  if section.get("name") == "halving" and section.get("stage_images"):
    stages = section["first"].bit_length()
    last = min(stages, 2)
    yield (stages - last) * section["stage_images"] + last * (
      section.get("last_stage_images") or section["stage_images"]
    )
  for value in section.values():
    yield from _curriculum_ends(value)


# From the format of the number to the next: a renamed or removed field has its line here.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _with_length}
