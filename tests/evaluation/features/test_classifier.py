"""The classifier of the digits learns, is the same for the same seed, and survives being stored."""

import json

import numpy as np
import pytest

from cm_jax.data.sources import images, labels, open_source
from cm_jax.errors import UserError
from cm_jax.evaluation.features import load_classifier, save_features, train_features
from cm_jax.evaluation.metrics.frechet import Moments, distance_of_moments, frechet_floor


@pytest.fixture(scope="module")
def digits():
  source = open_source("digits")
  return images(source), labels(source)


@pytest.fixture(scope="module")
def quick(digits):
  return train_features(*digits, seed=1, num_steps=20)


@pytest.mark.slow
def test_accuracy_and_what_the_distance_measures(digits):
  features = train_features(*digits)
  assert features.accuracy >= 0.975
  real = features(digits[0])[0]
  floor = frechet_floor(real)
  assert 0.1 < floor < 1
  noise = np.random.default_rng(0).standard_normal(digits[0].shape)
  distances = []
  for std in (0.1, 0.2, 0.3):
    noisy = np.clip(np.floor(digits[0] + 127.5 * std * noise + 0.5), 0, 255).astype(np.uint8)
    distances.append(distance_of_moments(Moments.of(real), Moments.of(features(noisy)[0])))
  assert 0 < distances[0] < distances[1] < distances[2] and distances[2] > floor


@pytest.mark.slow
def test_scaled_to_the_data(digits, quick):
  out, logits, _ = quick(digits[0])
  assert out.shape == (1797, 64) and logits.shape == (1797, 10)
  np.testing.assert_allclose(np.trace(Moments.of(out).covariance), 64, rtol=1e-5)
  assert 0.3 < quick.accuracy <= 1


@pytest.mark.slow
def test_any_number_of_images(digits, quick):
  whole = quick(digits[0][:300])
  for count in (1, 255, 256, 257):
    for part, full in zip(quick(digits[0][:count])[:2], whole, strict=False):
      np.testing.assert_allclose(part, full[:count], atol=1e-5)


@pytest.mark.slow
def test_seed_decides(digits, quick):
  assert (
    train_features(*digits, seed=1, num_steps=20).hash
    == quick.hash
    != train_features(*digits, seed=2, num_steps=20).hash
  )


def test_stored_and_read(tmp_path, digits, quick):
  save_features(tmp_path / "f", quick)
  save_features(tmp_path / "f", quick)
  again = load_classifier(tmp_path / "f")
  assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["features.json", "features.safetensors"]
  assert (again.hash, again.scale, again.accuracy, again.seed) == (quick.hash, quick.scale, quick.accuracy, 1)
  assert json.loads((tmp_path / "f" / "features.json").read_text())["sha256"] == quick.hash
  np.testing.assert_array_equal(again(digits[0][:9])[0], quick(digits[0][:9])[0])


@pytest.mark.parametrize("how", ["missing", "half", "altered", "other json", "not json"])
def test_damaged(tmp_path, quick, how):
  save_features(tmp_path, quick)
  weights, described = tmp_path / "features.safetensors", tmp_path / "features.json"
  data = weights.read_bytes()
  if how == "missing":
    described.unlink()
  elif how in ("half", "altered"):
    weights.write_bytes(data[: len(data) // 2] if how == "half" else data[:-1] + bytes([data[-1] ^ 1]))
  else:
    described.write_text("{}" if how == "other json" else "{")
  with pytest.raises(UserError):
    load_classifier(tmp_path)


def test_unlabelled_images_are_refused(digits):
  with pytest.raises(UserError, match="class number"):
    train_features(digits[0], np.full(1797, -1, np.int32))
