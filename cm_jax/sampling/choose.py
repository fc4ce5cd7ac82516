"""Which samplers a model is sampled with: those asked for, else its run's own, else those of its kind."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cm_jax.diffusion.pixels import is_latent
from cm_jax.errors import UserError, one_of, within
from cm_jax.models import Model
from cm_jax.sampling import SAMPLERS
from cm_jax.sampling.multistep import check_sigmas
from cm_jax.types import KINDS, Domain, NoiseRange, Sampler


def choose_samplers(
  model: Model,
  sigmas: Sequence[Sequence[float]] = (),
  num_steps: Sequence[int] = (),
  name: str = "heun",
  nfe: int | None = None,
  clip: bool | None = None,
  renoise: str | None = None,
) -> list[Sampler]:
  """Return the samplers that are asked for, else that of the model's run, else the usual one of its kind.

  The usual one of a diffusion model is Heun's method in 18 steps; of a consistency model or a flow map, one
  step from sigma_max. Whether it clips and how it adds noise again is the model's own, unless said here.

  Args:
    model: What is to be sampled.
    sigmas: Noise levels of multistep sampling, a sampler each.
    num_steps: Numbers of steps of the sampler `name`, a sampler each.
    name: A sampler that has a number of steps.
    nfe: Multistep sampling with the tuned noise levels of so many network evaluations.
    clip: Clip to [-1, 1]: x between the steps of multistep sampling, every D of the others.
    renoise: Of multistep sampling: how noise is added again.

  Raises:
    UserError: Values out of range, no levels known for `nfe`, or a choice needed of a model that does not say
      its kind.
  """
  if name not in with_num_steps():
    raise UserError("sampler", name, one_of(with_num_steps(), name))
  flags = {key: value for key, value in (("clip", clip), ("renoise", renoise)) if value is not None}
  multistep = {"name": "multistep", **own_multistep(model), **flags}
  chosen = [{**multistep, "sigmas": check_sigmas(levels, model.noise)} for levels in sigmas]
  chosen += [{"name": name, "num_steps": steps, **_own_clip(model, name), **flags} for steps in num_steps]
  if nfe is not None:
    known = {1: (model.noise.sigma_max,), **model.sigmas_by_nfe}
    if nfe not in known:
      found = ", ".join(map(str, sorted(known)))
      raise UserError("nfe", nfe, f"one of {found} (search-steps finds others), or noise levels of your own")
    chosen.append({**multistep, "sigmas": check_sigmas(known[nfe], model.noise, "sigmas_by_nfe")})
  domain = model.preconditioned.precond.domain
  make = lambda section: make_sampler(_checked(section, flags), model.noise, domain)
  if chosen:
    return [make(section) for section in chosen]
  if model.sampler is not None:
    with within("sampler"):
      return [make({**model.sampler, **flags})]
  one_step = {**multistep, "sigmas": (model.noise.sigma_max,)}
  heun = {"name": "heun", "num_steps": 18, **_own_clip(model, "heun"), **flags}
  usual = {"diffusion": heun, "consistency": one_step, "flow_map": one_step}
  return [make(usual[known_kind(model)])]


def own_multistep(model: Model) -> dict[str, Any]:
  """Return {"clip", "renoise"} of multistep sampling: the model's own, else CM's; latents are not clipped."""
  clip, renoise = (True, "cm") if model.renoise is None else (bool(model.clip), model.renoise)
  return {"clip": clip and not is_latent(model.image_shape), "renoise": renoise}


def _own_clip(model: Model, name: str) -> dict[str, bool]:
  """Return {"clip"} of a sampler that is no multistep one, if it can and the model's own says it."""
  if model.clip is None or model.renoise is not None or "clip" not in _fields(name):
    return {}
  return {"clip": model.clip}


def _checked(section: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
  name = section["name"]
  for key, value in flags.items():
    if name in SAMPLERS and key not in _fields(name):
      having = " or ".join(known for known in SAMPLERS if key in _fields(known))
      raise UserError(key, value, f"sampling by {having}, not {name}")
  return section


def _fields(name: str) -> list[str]:
  return [field.name for field in dataclasses.fields(SAMPLERS[name]) if field.name not in ("noise", "domain")]


def make_sampler(section: Mapping[str, Any], noise: NoiseRange, domain: Domain | None = None) -> Sampler:
  """Make the sampler that a config section names.

  Args:
    section: {"name": ..., **fields}, plain JSON values.
    noise: The range of noise levels.
    domain: What the network was made for, if its preconditioning says it.

  Raises:
    UserError: An unknown name or field, or a value out of range.

  >>> make_sampler({"name": "heun", "num_steps": 4}, NoiseRange()).nfe
  7
  """
  fields = dict(section)
  name = fields.pop("name", None)
  if name not in SAMPLERS:
    raise UserError("name", name, one_of(SAMPLERS, name))
  known = _fields(name)
  for key, value in fields.items():
    if key not in known:
      raise UserError(key, value, one_of(known, key))
    fields[key] = tuple(value) if isinstance(value, list) else value
  walks = any(field.name == "domain" for field in dataclasses.fields(SAMPLERS[name]))
  return SAMPLERS[name](noise=noise, **fields, **({"domain": domain} if walks else {}))


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


def unusual(sampler: Sampler) -> dict[str, Any]:
  """Return how a sampler clips and adds noise again, where that is not what its class does by default.

  >>> [unusual(make_sampler({"name": "heun", "clip": clip}, NoiseRange())) for clip in (True, False)]
  [{'clip': True}, {}]
  """
  known = dataclasses.fields(SAMPLERS[sampler_name(sampler)])
  fields = [field for field in known if field.name in ("clip", "renoise")]
  return {
    field.name: vars(sampler)[field.name] for field in fields if vars(sampler)[field.name] != field.default
  }


def listed(values: Sequence[float]) -> str:
  """Write noise levels as the command line takes them.

  >>> listed((80.0, 0.8))
  '80,0.8'
  """
  return ",".join(f"{value:g}" for value in values)
