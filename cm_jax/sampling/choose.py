"""Which samplers a model is sampled with: those asked for, else its run's own, else those of its kind."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cm_jax.diffusion.pixels import is_latent
from cm_jax.errors import UserError, one_of, within
from cm_jax.sampling import SAMPLERS
from cm_jax.sampling.multistep import check_sigmas
from cm_jax.types import KINDS, Model, NoiseRange, Sampler


def choose_samplers(
  model: Model,
  sigmas: Sequence[Sequence[float]] = (),
  num_steps: Sequence[int] = (),
  name: str = "heun",
  nfe: int | None = None,
) -> list[Sampler]:
  """Return the samplers that are asked for, else that of the model's run, else the usual one of its kind.

  The usual one of a diffusion model is Heun's method in 18 steps; of a consistency model or a flow map, one
  step from sigma_max.

  Args:
    model: What is to be sampled.
    sigmas: Noise levels of multistep sampling, a sampler each.
    num_steps: Numbers of steps of the sampler `name`, a sampler each.
    name: A sampler that has a number of steps.
    nfe: Multistep sampling with the tuned noise levels of so many network evaluations.

  Raises:
    UserError: Values out of range, no levels known for `nfe`, or a choice needed of a model that does not say
      its kind.
  """
  if name not in with_num_steps():
    raise UserError("sampler", name, one_of(with_num_steps(), name))
  multistep = {"name": "multistep", "clip": not is_latent(model.image_shape)}
  chosen = [{**multistep, "sigmas": check_sigmas(levels, model.noise)} for levels in sigmas]
  chosen += [{"name": name, "num_steps": steps} for steps in num_steps]
  if nfe is not None:
    known = {1: (model.noise.sigma_max,), **model.sigmas_by_nfe}
    if nfe not in known:
      found = ", ".join(map(str, sorted(known)))
      raise UserError("nfe", nfe, f"one of {found} (search-steps finds others), or noise levels of your own")
    chosen.append({**multistep, "sigmas": check_sigmas(known[nfe], model.noise, "sigmas.json")})
  if chosen:
    return [make_sampler(section, model.noise) for section in chosen]
  if model.sampler is not None:
    with within("sampler"):
      return [make_sampler(model.sampler, model.noise)]
  one_step = {**multistep, "sigmas": (model.noise.sigma_max,)}
  usual = {"diffusion": {"name": "heun", "num_steps": 18}, "consistency": one_step, "flow_map": one_step}
  return [make_sampler(usual[known_kind(model)], model.noise)]


def make_sampler(section: Mapping[str, Any], noise: NoiseRange) -> Sampler:
  """Make the sampler that a config section names.

  Args:
    section: {"name": ..., **fields}, plain JSON values.
    noise: The range of noise levels.

  Raises:
    UserError: An unknown name or field, or a value out of range.

  >>> make_sampler({"name": "heun", "num_steps": 4}, NoiseRange()).nfe
  7
  """
  fields = dict(section)
  name = fields.pop("name", None)
  if name not in SAMPLERS:
    raise UserError("name", name, one_of(SAMPLERS, name))
  known = [field.name for field in dataclasses.fields(SAMPLERS[name]) if field.name != "noise"]
  for key, value in fields.items():
    if key not in known:
      raise UserError(key, value, one_of(known, key))
    fields[key] = tuple(value) if isinstance(value, list) else value
  return SAMPLERS[name](noise=noise, **fields)


def with_num_steps() -> tuple[str, ...]:
  """Return the names of the samplers that have a number of steps.

  >>> "heun" in with_num_steps(), "multistep" in with_num_steps()
  (True, False)
  """
  has = lambda sampler: any(field.name == "num_steps" for field in dataclasses.fields(sampler))
  return tuple(name for name, sampler in SAMPLERS.items() if has(sampler))


def known_kind(model: Model) -> str:
  """Return what a model's D is, one of `KINDS`.

  Raises:
    UserError: It comes from a weights folder that does not say it.
  """
  if model.kind is None:
    what = " or ".join([", ".join(KINDS[:-1]), KINDS[-1]])
    raise UserError("kind", "", f"{what}: its model.json is of an older format and does not say it")
  return model.kind


def sampler_name(sampler: Sampler) -> str:
  """Return the name a sampler has in the registry.

  >>> sampler_name(make_sampler({"name": "euler"}, NoiseRange()))
  'euler'
  """
  return next(name for name, cls in SAMPLERS.items() if type(sampler) is cls)


def listed(values: Sequence[float]) -> str:
  """Write noise levels as the command line takes them.

  >>> listed((80.0, 0.8))
  '80,0.8'
  """
  return ",".join(f"{value:g}" for value in values)
