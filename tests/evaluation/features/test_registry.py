"""Whatever `FEATURES` holds: weights that are not there are one line, and the digits are trained once."""

import numpy as np
import pytest

from cm_jax.data.sources import images, open_source
from cm_jax.errors import UserError
from cm_jax.evaluation.features import FEATURES, classifier, digits, load_features
from cm_jax.networks.dinov2 import SIZES
from tests.examples import EXAMPLES


@pytest.mark.parametrize("name", FEATURES)
def test_weights_that_are_not_there_are_named(name, tmp_path):
  missing = tmp_path / "nothing.safetensors"
  with pytest.raises(UserError, match="nothing") as caught:
    load_features(name, missing)
  assert str(caught.value).count("\n") == 0


def test_sizes_are_those_of_the_papers():
  assert {name: size.features for name, size in SIZES.items()}.items() <= EXAMPLES["features"].items()


@pytest.mark.slow
def test_the_digits_are_trained_once_a_machine(tmp_path, monkeypatch):
  calls = []

  def few(*arguments, **given):
    calls.append(given)
    return classifier.train_features(*arguments, **given, num_steps=2)

  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(digits, "train_features", few)
  first, second = load_features("digits"), load_features("digits")
  assert calls == [{"name": "digits"}] and first.name == "digits" and first.hash == second.hash
  assert (first.size, first.gives) == (EXAMPLES["features"]["digits"], ("logits",))
  found = second(images(open_source("digits"))[:5], ("logits",))
  assert found.features.shape == (5, 64) and found.logits.shape == (5, 10) and found.spatial is None
  monkeypatch.setenv("CM_JAX_CACHE", "/proc/nowhere")
  assert load_features("digits").hash == first.hash  # without a cache, trained again
  np.testing.assert_equal(len(calls), 2)
