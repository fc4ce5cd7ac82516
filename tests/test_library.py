"""What a person sees in a notebook: short reprs, names to complete, numbers where one will do."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import cm_jax
from cm_jax.errors import UserError
from cm_jax.evaluation.features import ClassifierFeatures
from cm_jax.training.step import init_state
from tests import tiny


@pytest.fixture(scope="module")
def experiment() -> cm_jax.Experiment:
  config = tiny.config()
  config.data.conditional = True
  return cm_jax.build(config)


@pytest.fixture(scope="module")
def model(experiment) -> cm_jax.Model:
  params = jax.jit(experiment.method.init)(jax.random.key(3))
  provenance = {"path": "runs/x", "step": 7, "average": "ema"}
  return dataclasses.replace(
    experiment.model(params), provenance=provenance, sigmas_by_nfe={3: (70.0, 5.0, 0.25)}
  )


def test_dir_lists_the_public_names():
  assert set(cm_jax.__all__) <= set(dir(cm_jax))
  assert {"load_model", "sample", "to_pil", "build", "train"} <= set(cm_jax.__all__)


def test_reprs_are_a_few_lines(experiment, model):
  features = ClassifierFeatures({"w": np.zeros((64, 64))}, 10, 1.0, 0.5, 0)
  state = init_state(experiment.method.init, experiment.method.optimizer, 0)
  for shown in (experiment, experiment.method, model, features, state):
    assert repr(shown).count("\n") <= 5, repr(shown)
    assert len(repr(shown)) < 500
  assert "8x8x1 images of 10 classes" in repr(model)
  assert f"{experiment.method.parameters():,} parameters" in repr(model)
  assert "from: runs/x, step 7, average ema" in repr(model)
  assert "{3: 70, 5, 0.25}" in repr(model)
  assert "digits:train, 1,437 images" in repr(experiment)


def test_one_noise_level_and_one_label_for_all(model):
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")
  every = model.denoiser(np.full(3, 4, np.int32))(x, np.full(3, 2.5, np.float32))
  for sigma in (2.5, np.float64(2.5), [2.5], np.full((3, 1, 1, 1), 2.5)):
    np.testing.assert_array_equal(model.denoiser(4)(x, sigma), every)
  with pytest.raises(UserError, match=r"sigma = \(2,\): expected one number, or one for each of the 3"):
    model.denoiser(4)(x, np.ones(2))


@pytest.mark.parametrize(
  "x", [np.zeros((2, 8, 8, 3), "float32"), np.zeros((8, 8, 1), "float32"), np.zeros((2, 8, 8, 1), "uint8")]
)
def test_images_that_are_not_the_models(model, x):
  with pytest.raises(UserError, match="^x = "):
    model.denoiser()(x, 1.0)


def test_sample(model):
  images = model.sample(5, sigmas=(60.0, 2.0), label=2, seed=9)
  assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8
  np.testing.assert_array_equal(cm_jax.sample(model, 2, sigmas=(60.0, 2.0), label=2, seed=9), images[:2])
  own = cm_jax.Multistep(model.noise, sigmas=(60.0, 2.0))
  np.testing.assert_array_equal(model.sample(5, sampler=own, label=2, seed=9), images)
  pictures = cm_jax.to_pil(images)
  assert [picture.size for picture in pictures] == [(8, 8)] * 5
  np.testing.assert_array_equal(np.asarray(pictures[3]), images[3, :, :, 0])


@pytest.mark.parametrize(
  "how, field",
  [
    ({"sigmas": 80.0, "num_steps": 3}, "num_steps"),
    ({"nfe": 5}, "nfe"),
    ({"label": 10}, "label"),
    ({"num": 0}, "num"),
    ({"seed": 2**32 + 5}, "seed"),
    ({"sampler": "hein", "num_steps": 3}, "sampler"),
  ],
)
def test_ways_to_sample_that_cannot_be(model, how: dict[str, Any], field):
  with pytest.raises(UserError, match=f"^{field} = "):
    model.sample(**how)


def test_what_is_no_picture():
  for images in (np.zeros((2, 8, 8, 1)), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)):
    with pytest.raises(UserError, match="^images = "):
      cm_jax.to_pil(images)


def test_a_seed_that_jax_would_cut(capsys):
  config = tiny.config()
  for seed in (2**32, 2**70, True, 0.5):
    with config.ignore_type():
      config.seed = seed
    with pytest.raises(UserError, match=f"config.seed = {seed}: expected an integer, 0 to 4294967295"):
      cm_jax.assemble(config, (8, 8, 1), 0)


def test_a_path_that_is_no_model(tmp_path):
  with pytest.raises(UserError, match="^model = nope: expected a run folder"):
    cm_jax.load_model("nope")
  (tmp_path / "net.pkl").write_bytes(b"x")
  with pytest.raises(UserError, match="`convert` makes a weights folder"):
    cm_jax.load_model(tmp_path / "net.pkl")
