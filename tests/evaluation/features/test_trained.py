"""A residual network of one's own learns from labelled images, is stored whole, and refuses what it must."""

import json

import numpy as np
import pytest

from cm_jax import cli
from cm_jax.errors import UserError
from cm_jax.evaluation.features import load_features, train_resnet
from cm_jax.networks.resnet import widths_for


@pytest.fixture(scope="module")
def marked():
  """Noise of 7x10 pixels, brighter in the first channel's corner that tells the class."""
  rng = np.random.default_rng(3)
  labels = rng.integers(0, 3, 150).astype(np.int32)
  images = rng.integers(0, 90, (150, 7, 10, 3), dtype=np.uint8)
  for image, label in zip(images, labels, strict=True):
    image[..., label] += 120
  return images, labels


@pytest.fixture(scope="module")
def trained(marked):
  return train_resnet(*marked, "marks", seed=4, num_steps=12, batch_size=24, class_names=("r", "g", "b"))


@pytest.mark.slow
def test_it_learns_and_is_scaled(marked, trained):
  images, labels = marked
  features, logits, _ = trained(images)
  assert trained.accuracy > 0.8 and (logits.argmax(1) == labels).mean() > 0.8
  assert features.shape == (150, trained.size) == (150, widths_for(7, 10)[-1])
  np.testing.assert_allclose(features.var(0, ddof=1).sum(), trained.size, rtol=0.1)


@pytest.mark.slow
def test_stored_and_read(tmp_path, marked, trained):
  trained.save(tmp_path)
  again = load_features(tmp_path)
  assert (again.name, again.hash, again.image_shape) == ("marks", trained.hash, (7, 10, 3))
  assert again.class_names == ("r", "g", "b")
  for part, kept in zip(again(marked[0][:5])[:2], trained(marked[0][:5])[:2], strict=True):
    np.testing.assert_array_equal(part, kept)


@pytest.mark.parametrize(
  "change, said",
  [
    ({"network": "vgg"}, "network = vgg: expected resnet"),
    ({"num_classes": 5}, "the weights of the network"),
    ({"image_shape": [7, 10, 1]}, "the weights of the network"),
    ({"sha256": "0" * 64}, "sha256"),
    ({"image_shape": 7}, "features written by cm_jax"),
    ({"image_shape": [0, 10, 3]}, "features"),
    ({"num_classes": "3"}, "features"),
  ],
)
@pytest.mark.slow
def test_a_folder_that_is_not_whole(tmp_path, trained, change, said):
  trained.save(tmp_path)
  described = tmp_path / "features.json"
  described.write_text(json.dumps({**json.loads(described.read_text()), **change}))
  with pytest.raises(UserError, match=said):
    load_features(tmp_path)


def test_bad_images(marked):
  images, labels = marked
  for arguments, said in [
    ((images, np.full(150, -1, np.int32)), "a class number"),
    ((images, np.zeros(150, np.int32)), "two classes"),
    ((images[:100], labels[:100]), "at least a batch of 128"),
    ((images[:0], labels[:0]), "images"),
  ]:
    with pytest.raises(UserError, match=said):
      train_resnet(*arguments, "bad")


@pytest.mark.slow
def test_the_command_names_the_distance(tmp_path, marked, capsys):
  images, labels = marked
  np.savez(tmp_path / "set.npz", images[:, :7, :7], labels)
  command = ["train-features", f"--source=npz:{tmp_path / 'set.npz'}", f"--out={tmp_path / 'f'}"]
  assert cli.run([*command, "--name=inception"]) == 2
  assert "--name = inception" in capsys.readouterr().err
  assert cli.run([*command, "--name=marks", "--num_steps=2"]) == 0
  assert "FD-marks, held-out accuracy" in capsys.readouterr().out
  assert load_features(tmp_path / "f").name == "marks"
