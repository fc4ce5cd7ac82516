"""Wrong uses are told in a line, right ones are not."""

import dataclasses

import numpy as np
import pytest

from cm_jax.sampling.doubts import doubts
from cm_jax.sampling.multistep import Multistep
from cm_jax.sampling.ode import Euler, Heun
from cm_jax.sampling.operators import Colorize
from cm_jax.types import NoiseRange
from tests.gaussian import GaussianPreconditioned
from tests.sampling.models import model_of

NOISE = NoiseRange()
FEW, ODE = Multistep(NOISE, sigmas=(80.0, 2.0)), Euler(NOISE, num_steps=4)


@pytest.mark.parametrize(
  "fields, use, said",
  [
    ({"kind": "diffusion"}, {"samplers": [Heun(NOISE)]}, None),
    ({"kind": "diffusion"}, {"samplers": [FEW]}, "multistep sampling of a diffusion model"),
    ({"kind": "consistency"}, {"samplers": [FEW]}, None),
    ({"kind": "consistency"}, {"samplers": [FEW, ODE]}, "an ODE sampler on a consistency model"),
    ({"kind": "flow_map"}, {"samplers": [ODE]}, "an ODE sampler on a flow map model"),
    ({"kind": None}, {"samplers": [FEW, ODE]}, None),
    ({"kind": "diffusion"}, {"edits": True}, "editing with a diffusion model"),
    ({"kind": "consistency"}, {"edits": True}, None),
    ({"num_classes": 3, "guidable": False}, {"guidance": 2.0}, "label_dropout = 0"),
    ({"num_classes": 3, "guidable": False}, {"guidance": 1.0}, None),
    ({"num_classes": 3, "guidable": True}, {"guidance": 2.0}, None),
    ({"num_classes": 3}, {"guidance": 2.0}, None),
    ({"num_classes": 3}, {"edits": True, "label": -1}, "no label, for a model of 3 classes"),
    ({"num_classes": 3}, {"edits": True, "label": 2}, None),
  ],
)
def test_uses(fields, use, said):
  model = model_of(GaussianPreconditioned(NOISE.sigma_min), **fields)
  found = doubts(model, **use)
  assert (found == []) if said is None else (len(found) == 1 and said in found[0])


def test_what_is_known_of_colours_is_shown_grey():
  image = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype("float32")
  shown = np.asarray(Colorize().shown(image))
  np.testing.assert_array_equal(shown, shown[..., :1].repeat(3, -1))
  white = np.ones((1, 1, 1, 3), "float32")
  np.testing.assert_allclose(Colorize().shown(white), white, atol=1e-6)
  kept = dataclasses.replace(Colorize()).merge(image[::-1], image)
  np.testing.assert_allclose(Colorize().shown(kept), shown, atol=1e-5)
