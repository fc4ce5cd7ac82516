"""The weights that come with cm_jax: small, ours, listed for the wheel, told in their README, and what they
draw."""

import configparser
import re

import numpy as np
import pytest

from cm_jax import load_model
from cm_jax.evaluation.features import load_features
from cm_jax.storage import weights
from cm_jax.storage.published import shipped
from tests.configs.rows import CONFIGS

FOLDER = CONFIGS / "results" / "weights"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
COLOUR = [name for name in NAMES if name.startswith("cifar16")]


def test_all_are_found_by_name_and_go_into_the_wheel():
  setup = configparser.ConfigParser()
  setup.read(CONFIGS.parent / "setup.cfg")
  listed = dict(setup["options.data_files"])
  places = {
    f"share/cm_jax/configs/results/weights/{name}": f"configs/results/weights/{name}/*" for name in NAMES
  }
  assert places.items() <= listed.items()
  assert list(shipped()) == NAMES and {"digits-cd", "digits-edm", "digits-sct"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_told(name):
  files = list((FOLDER / name).iterdir())
  assert sum(path.stat().st_size for path in files) < 5e6
  info = weights.load_info(FOLDER / name)
  assert info["licence"] == "Apache-2.0" and len(info["weights_sha256"]) == 64
  row = re.search(rf"^\| `{name}` \|.*$", (FOLDER / "README.md").read_text(), re.MULTILINE)
  assert row and re.search(r"\d\.\d{3}", row[0]), name


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [name for name in NAMES if name.startswith("digits") and name != "digits-edm"]
)
def test_each_draws_digits(name):
  """Near real ones: one of noise or of grey is four times as far from its nearest digit."""
  from cm_jax.data.sources import open_source

  model, source = load_model(name), open_source("digits")
  real = np.stack([source[i]["image"] for i in range(len(source))]).reshape(len(source), -1) / 255
  images = model.sample(32, sigmas=(80.0,), seed=3).reshape(32, -1) / 255
  nearest = np.sqrt(np.square(images[:, None] - real[None]).sum(-1)).min(1)
  assert np.median(nearest) < 2.2 and images.std() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", COLOUR)
def test_each_draws_colour_images_of_the_class_it_is_asked_for(name):
  """To the classifier that they were measured by: chance is one in ten."""
  model, classifier = load_model(name), load_features(FOLDER.parent / "cifar16" / "features")
  labels = np.arange(60) % 10  # by default
  kind = {"num_steps": 18} if model.kind == "diffusion" else {"sigmas": (80.0,)}
  images = model.sample(60, seed=5, **kind)
  assert images.shape == (60, 16, 16, 3) and model.class_names[3] == "cat"
  assert np.mean(classifier(images, ("logits",)).logits.argmax(1) == labels) > 0.4
