"""Which sampler a model gets: that asked for, else its run's, else its kind's; names say nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.sampling import SAMPLERS
from cm_jax.sampling.choose import choose_samplers, listed, make_sampler, sampler_name, with_num_steps
from cm_jax.sampling.generate import make_generator
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Heun
from cm_jax.types import KINDS, NoiseRange
from tests.gaussian import GaussianPreconditioned
from tests.sampling.models import GAUSSIAN, model_of

NOISE = NoiseRange()


def model(**fields):
  return model_of(GaussianPreconditioned(), **fields)


def test_noise_levels_steps_and_tuned_levels_are_a_sampler_each():
  tuned = model(sigmas_by_nfe={2: (80.0, 0.9)})
  chosen = choose_samplers(tuned, [(80, 0.8), (80,)], (3, 5), "euler", nfe=2)
  assert [(sampler_name(s), s.nfe) for s in chosen] == [
    *(("multistep", 2), ("multistep", 1), ("euler", 3), ("euler", 5), ("multistep", 2)),
  ]
  assert chosen[0] == Multistep(NOISE, (80.0, 0.8)) and chosen[-1].sigmas == (80.0, 0.9)
  assert choose_samplers(model(), nfe=1)[0].sigmas == (80.0,)


def test_latents_are_not_clipped():
  assert choose_samplers(model(shape=(4, 4, 4)), [(80,)])[0] == Multistep(NOISE, (80.0,), clip=False)
  assert choose_samplers(model(shape=(4, 4, 4)))[0] == Multistep(NOISE, (80.0,), clip=False)


@pytest.mark.parametrize("name", with_num_steps())
def test_every_sampler_with_a_number_of_steps_may_be_asked_for_and_samples(name):
  (sampler,) = choose_samplers(model(), num_steps=(4,), name=name)
  assert type(sampler) is SAMPLERS[name] and sampler.num_steps == 4
  images = make_generator(model(), sampler)(GAUSSIAN, np.uint32(0), np.arange(2), None)
  assert images.shape == (2, 4, 4, 1) and images.dtype == np.uint8


def test_a_new_sampler_with_a_number_of_steps_needs_no_other_place(monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Mine:
    noise: NoiseRange
    num_steps: int = 1
    nfe = 1
    sigmas = (80.0,)

    def __call__(self, denoiser, noise, shape):
      return denoiser(80 * noise(0, shape), jax.numpy.full(shape[:1], 80.0))

  monkeypatch.setitem(SAMPLERS, "mine", Mine)
  assert choose_samplers(model(), num_steps=(2,), name="mine") == [Mine(NOISE, 2)]
  assert choose_samplers(model(sampler={"name": "mine", "num_steps": 3})) == [Mine(NOISE, 3)]


def test_without_a_choice_the_runs_own_comes_before_its_kind():
  own = {"name": "multistep", "sigmas": [80.0, 2.0], "clip": False, "renoise": "ect"}
  assert choose_samplers(model(kind="diffusion", sampler=own)) == [
    Multistep(NOISE, (80.0, 2.0), False, "ect")
  ]
  usual = {kind: choose_samplers(model(kind=kind, precond={"name": "edm"}))[0] for kind in KINDS}
  assert usual == {
    "diffusion": Heun(NOISE, 18),
    "consistency": Multistep(NOISE, (80.0,)),
    "flow_map": Multistep(NOISE, (80.0,)),
  }


def test_a_model_that_does_not_say_its_kind_is_asked_only_where_it_matters():
  unknown = model(kind=None, precond={"name": "edm"}, sigmas_by_nfe={2: (80.0, 1.0)})
  with pytest.raises(
    UserError, match="^kind = : expected diffusion, consistency or flow_map: its model.json is of an older"
  ):
    choose_samplers(unknown)
  assert len(choose_samplers(unknown, [(80.0,)], (3,), nfe=2)) == 3


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      {"sigmas": [(0.8, 80)]},
      r"^sigmas = 0.8,80: expected one or more descending noise levels in \(0.002, 80\]",
    ),
    ({"num_steps": (0,)}, "^num_steps = 0: expected an integer >= 1"),
    ({"name": "hune", "num_steps": (3,)}, r"^sampler = hune: expected 'heun' \(did you mean it\?\)"),
    ({"name": "multistep"}, "^sampler = multistep"),
    ({"nfe": 3}, r"^nfe = 3: expected one of 1 \(search-steps finds others\)"),
  ],
)
def test_bad_choices_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    choose_samplers(model(), **arguments)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"name": "huen"}, r"^sampler.name = huen: expected 'heun'"),
    ({"name": "heun", "steps": 3}, r"^sampler.steps = 3: expected 'num_steps'"),
    ({"name": "heun", "num_steps": 0}, "^sampler.num_steps = 0"),
    ({"name": "multistep", "sigmas": []}, "^sampler.sigmas = "),
  ],
)
def test_a_runs_bad_sampler_is_named_by_its_key(section, message):
  with pytest.raises(UserError, match=message):
    choose_samplers(model(sampler=section))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_comes_back_from_its_name(name):
  sampler = make_sampler({"name": name}, NOISE)
  assert sampler_name(sampler) == name and sampler == SAMPLERS[name](NOISE)
  assert listed(sampler.sigmas).startswith("80")
