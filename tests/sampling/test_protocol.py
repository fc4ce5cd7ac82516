"""Whether a model's sampling clips and how it adds noise again is the model's own, in runs and in exports."""

import dataclasses
import importlib
import json
import math
import shutil
import sys
from pathlib import Path

import jax
import pytest

from cm_jax import config as config_lib
from cm_jax.assembly import build, load_model, model_of
from cm_jax.assembly.method import make_parts
from cm_jax.assembly.tuned import tuned_levels
from cm_jax.convert import own
from cm_jax.convert.foreign import AS_IT_IS, build_model
from cm_jax.errors import UserError
from cm_jax.sampling.ablation import Ablation
from cm_jax.sampling.choose import choose_samplers, unusual
from cm_jax.sampling.images import sample
from cm_jax.sampling.multistep import Multistep, check_sigmas, trigflow_sigmas
from cm_jax.sampling.ode import Euler, Heun
from cm_jax.storage import weights
from cm_jax.types import NoiseRange
from tests import tiny
from tests.gaussian import GaussianPreconditioned
from tests.sampling.models import model_of as gaussian

CONFIGS = Path(__file__).parents[2] / "configs"
OLD = Path(__file__).parents[1] / "storage" / "old"
NOISE = NoiseRange()


def model(**fields):
  return gaussian(GaussianPreconditioned(), **fields)


def shipped(name: str):
  sys.path.append(str(CONFIGS))
  try:
    return importlib.import_module(name).get_config()
  finally:
    sys.path.remove(str(CONFIGS))


@pytest.mark.parametrize(
  ("own", "clip", "renoise"),
  [
    ({"clip": False, "renoise": "ect"}, False, "ect"),
    ({"clip": False, "renoise": "cm"}, False, "cm"),
    ({"clip": True, "renoise": "ect"}, True, "ect"),
    ({}, True, "cm"),  # a weights folder from before they were stored
    ({"clip": False}, True, "cm"),  # of a sampler that is no multistep one
  ],
)
def test_levels_and_tuned_levels_are_sampled_as_the_model_says(own, clip, renoise):
  tuned = model(sigmas_by_nfe={3: (80.0, 9.0, 0.7)}, **own)
  expected = [Multistep(NOISE, levels, clip, renoise) for levels in ((80.0, 1.3), (80.0, 9.0, 0.7))]
  assert choose_samplers(tuned, [(80, 1.3)], nfe=3) == expected
  assert choose_samplers(tuned) == [Multistep(NOISE, (80.0,), clip, renoise)]
  flagged = choose_samplers(tuned, [(80, 1.3)], clip=not clip, renoise="ect")
  assert flagged == [Multistep(NOISE, (80.0, 1.3), not clip, "ect")]


def test_latents_are_clipped_only_where_a_flag_says_so():
  latents = model(shape=(4, 4, 4), clip=True, renoise="ect")
  assert choose_samplers(latents, [(80, 2)]) == [Multistep(NOISE, (80.0, 2.0), False, "ect")]
  assert choose_samplers(latents, [(80, 2)], clip=True)[0].clip


def test_a_diffusion_models_own_clipping_is_that_of_every_d():
  clipping = model(kind="diffusion", clip=True)
  assert choose_samplers(clipping) == [Heun(NOISE, 18, clip=True)]
  assert choose_samplers(clipping, num_steps=(5,), name="euler") == [Euler(NOISE, 5, clip=True)]
  assert choose_samplers(clipping, num_steps=(5,), clip=False) == [Heun(NOISE, 5)]
  own = {"name": "ablation", "num_steps": 6}
  assert choose_samplers(model(kind="diffusion", sampler=own), clip=True) == [Ablation(NOISE, 6, clip=True)]
  with pytest.raises(UserError, match="^renoise = ect: expected sampling by multistep, not heun"):
    choose_samplers(clipping, num_steps=(5,), renoise="ect")
  with pytest.raises(UserError, match="^renoise = edm: expected cm or ect"):
    choose_samplers(model(), [(80,)], renoise="edm")


def test_an_image_in_one_call_takes_them_too():
  seen = [
    sample(model(), 2, sigmas=(80, 2), clip=clip, renoise=how) for clip, how in ((None, None), (False, "ect"))
  ]
  assert seen[0].shape == seen[1].shape == (2, 4, 4, 1)
  with pytest.raises(UserError, match="^clip = True: expected none: the sampler says it"):
    sample(model(), 2, sampler=Heun(NOISE, 3), clip=True)


def test_records_tell_samplers_apart_by_what_is_unusual():
  assert unusual(Multistep(NOISE)) == {} and unusual(Heun(NOISE)) == {}
  assert unusual(Multistep(NOISE, clip=False, renoise="ect")) == {"clip": False, "renoise": "ect"}


SAMPLED = {
  "cifar10_cd": (True, "cm", 0.585), "cifar10_ct": (True, "cm", None), "cifar10_ict": (True, "cm", 0.821),
  "cifar10_ect": (False, "ect", 0.821), "cifar10_sct": (False, "ect", 0.982),
  "cifar10_scd": (False, "ect", 0.982), "imagenet64_cd": (True, "cm", 1.382),
  "imagenet64_ct": (True, "cm", 1.913), "digits_cd": (True, "cm", 3.0), "digits_ect": (False, "ect", 1.6),
  "digits_sct": (False, "ect", 1.6), "digits_scd": (False, "ect", 1.6), "digits_ict": (True, "cm", 1.6),
  "digits_ct": (True, "cm", 1.6), "digits_cd_continuous": (True, "cm", 1.6),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_configs_say_how_their_paper_samples_in_two_steps(name):
  config, (clip, renoise, middle) = shipped(name), SAMPLED[name]
  sampler = make_parts(config).sampler
  assert isinstance(sampler, Multistep) and (sampler.clip, sampler.renoise) == (clip, renoise)
  assert tuned_levels(config.sigmas_by_nfe, NOISE) == ({2: (80.0, middle)} if middle else {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The stored config and the params of a run whose sampling is ECT's."""
  config = tiny.config(tiny.CT)
  config.sampler = {"name": "multistep", "sigmas": (80.0,), "clip": False, "renoise": "ect"}
  config.sigmas_by_nfe = {"2": (80.0, 1.7), "3": (80.0, 7.0, 0.5)}
  experiment = build(config)
  params = jax.jit(experiment.method.init)(jax.random.key(0))
  return experiment, config_lib.plain_json(experiment.config), params


def test_a_run_is_sampled_as_its_config_says_and_what_search_found_comes_first(run):
  experiment, stored, params = run
  for loaded in (model_of(stored, params), experiment.model(params)):
    assert choose_samplers(loaded, nfe=2) == [Multistep(NOISE, (80.0, 1.7), False, "ect")]
  found = model_of(stored, params, sigmas_by_nfe={2: (80.0, 2.2)})
  assert found.sigmas_by_nfe == {2: (80.0, 2.2), 3: (80.0, 7.0, 0.5)}
  assert choose_samplers(found, [(80.0, 4.0)])[0].sigmas == (80.0, 4.0)


def test_an_export_and_its_export_carry_it(run, tmp_path):
  _, stored, params = run
  origin = {"source_sha256": "", "licence": "yours"}
  weights.save_weights(
    tmp_path / "a", {"net": params["net"]}, {**weights.info_of(model_of(stored, params)), **origin}
  )
  again = build_model(own.read(tmp_path / "a", AS_IT_IS))
  weights.save_weights(tmp_path / "b", again.params, {**weights.info_of(again), **origin})
  for folder in ("a", "b"):
    loaded = load_model(tmp_path / folder)
    assert (loaded.clip, loaded.renoise) == (False, "ect")
    assert choose_samplers(loaded, nfe=3) == [Multistep(NOISE, (80.0, 7.0, 0.5), False, "ect")]
  file = tmp_path / "b" / "model.json"
  info = json.loads(file.read_text())
  del info["clip"], info["renoise"]
  file.write_text(json.dumps(info))
  assert choose_samplers(load_model(tmp_path / "b"), nfe=2) == [Multistep(NOISE, (80.0, 1.7))]
  for wrong in ({"clip": "no"}, {"renoise": "edm"}, {"clip": 1}):
    file.write_text(json.dumps({**info, **wrong}))
    with pytest.raises(UserError, match=f"model.json: {next(iter(wrong))} = .*: expected "):
      load_model(tmp_path / "b")


def test_an_old_run_has_no_levels_and_samples_as_it_did(tmp_path):
  stored = json.loads((shutil.copytree(OLD / "run", tmp_path / "run") / "config.json").read_text())
  loaded = model_of(stored, {})
  assert loaded.sigmas_by_nfe == {}
  assert choose_samplers(loaded, [(80.0, 0.8)]) == [Multistep(loaded.noise, (80.0, 0.8))]


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"2": (80.0,)}, r"^config.sigmas_by_nfe.2 = 80: expected 2 noise levels"),
    ({"two": (80.0, 1.0)}, "^config.sigmas_by_nfe = two: expected numbers of network evaluations"),
    ({"2": (0.5, 80.0)}, "^config.sigmas_by_nfe.2 = 0.5,80: expected one or more descending"),
    ({"2": (90.0, 1.0)}, "^config.sigmas_by_nfe.2 = 90,1: "),
    ({"1": 80.0}, "^config.sigmas_by_nfe.1 = 80.0: "),
  ],
)
def test_levels_of_a_config_that_do_not_do_are_named(section, message):
  config = config_lib.default()
  config.sigmas_by_nfe = section
  with pytest.raises(UserError, match=message):
    make_parts(config)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 0.75, 1.0])
def test_trigflows_own_largest_level_is_sigma_max(sigma_data):
  noise = dataclasses.replace(NOISE, sigma_data=sigma_data)
  angles = (math.atan(80.0 / sigma_data), 1.1)
  assert check_sigmas(trigflow_sigmas(angles, sigma_data), noise)[0] == pytest.approx(80.0, abs=1e-9)
  assert Multistep(noise, trigflow_sigmas(angles, sigma_data)).sigmas[0] <= 80.0
  assert check_sigmas((80.07, 1.0), noise) == (80.0, 1.0)
  with pytest.raises(UserError, match="^sigmas = 80.1,1: "):
    check_sigmas((80.1, 1.0), noise)
