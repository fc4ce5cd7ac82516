"""Inception as an extractor, the registry, and what is wrong with weights."""

import numpy as np
import pytest

from cm_jax.benchmark.features import random_arrays
from cm_jax.errors import UserError
from cm_jax.evaluation.features import FEATURES, load_features
from cm_jax.evaluation.features.inception import InceptionFeatures, of_arrays
from cm_jax.storage.weights import save_arrays
from cm_jax.types import Params

NONE: Params = {}


@pytest.mark.slow
def test_the_whole_network_on_several_devices(tmp_path):
  """One program: batches, padding, features, logits, spatial; from a file, as its hash says."""
  arrays = random_arrays(np.random.default_rng(7))
  save_arrays(tmp_path / "inception.safetensors", arrays)
  measure = load_features("inception", tmp_path / "inception.safetensors")
  assert measure.hash == of_arrays(arrays).hash
  small = of_arrays(arrays, batch_size=8)
  images = np.random.default_rng(8).integers(0, 256, (9, 40, 70, 3), np.uint8)
  found = small(images, ("spatial", "logits"))
  assert [out.shape for out in found] == [(9, 2048), (9, 1008), (9, 17 * 17 * 7)]
  assert all(out.dtype == np.float32 for out in found)
  again = small(images[8:], ("logits", "spatial"))
  for part, whole in zip(again, found, strict=True):
    np.testing.assert_allclose(part, whole[8:], atol=1e-5 * np.abs(whole).max())
  weights = arrays["fc.weight"].astype(np.float64)
  np.testing.assert_allclose(found.logits, found.features @ weights, atol=1e-4)
  assert (found.spatial >= 0).all() and found.spatial.std(0).max() > 0


def test_what_it_is_and_gives():
  measure = InceptionFeatures(NONE, "h")
  assert (measure.size, measure.resize, measure.gives) == (2048, "tf1-bilinear 299", ("logits", "spatial"))
  assert [InceptionFeatures(NONE, "h", f"inception-{n}").size for n in (64, 192, 768)] == [64, 192, 768]
  assert {"digits", "inception", "inception-64", "inception-192", "inception-768"} <= FEATURES.keys()


@pytest.mark.parametrize(
  ("images", "also", "message"),
  [
    (
      np.zeros((2, 8, 8, 4), np.uint8),
      (),
      r"images = of shape \[8, 8, 4\]: expected images of 1 or 3 channels",
    ),
    (np.zeros((2, 8, 8, 3)), (), "images = float64 of shape"),
    (np.zeros((0, 8, 8, 3), np.uint8), (), "N >= 1"),
    (np.zeros((2, 0, 8, 3), np.uint8), (), "not empty"),
    (np.zeros((2, 8, 8, 3), np.uint8), ("hidden",), "features = inception: .*gives hidden"),
  ],
)
def test_what_it_cannot_measure(images, also, message):
  with pytest.raises(UserError, match=message):
    InceptionFeatures(NONE, "h")(images, also)


@pytest.mark.parametrize(
  ("name", "weights", "message"),
  [
    ("incepton", None, r"features = incepton: expected 'inception' \(did you mean it\?\)"),
    (
      "inception",
      "nowhere.safetensors",
      "weights = nowhere.safetensors: expected a readable safetensors file",
    ),
    ("inception", "nowhere.pth", "weights = nowhere.pth: expected a file that can be read"),
    ("dinov2-l", "nowhere.pth", "weights = nowhere.pth: expected a file that can be read"),
    (".", "x.safetensors", "weights = x.safetensors: expected none"),
  ],
)
def test_weights_that_are_not_there(name, weights, message):
  with pytest.raises(UserError, match=message):
    load_features(name, weights)


def test_without_weights_and_network_it_says_where_to_get_them(tmp_path, monkeypatch):
  from cm_jax.storage import downloads

  def offline(*_, **__):
    raise OSError("no route to host")

  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(downloads, "_fetch", offline)
  with pytest.raises(UserError, match=r"no route.*sha256 6726825d0af5f729.*offline: put that file at"):
    load_features("inception")
