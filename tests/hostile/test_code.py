"""No file of somebody's runs code: neither a run's stored config, nor what a prepared set says of itself."""

import json
import sys

import pytest

from cm_jax import cli
from cm_jax.assembly.models import model_of
from cm_jax.data.sources import open_source
from cm_jax.errors import UserError
from cm_jax.evaluation.real import choose_sources
from cm_jax.storage import run
from tests import tiny
from tests.data.test_sources import PIXELS, write_tfds

OWN = "tensorflow_datasets.core.features"
TOP = {"pythonClassName": f"{OWN}.features_dict.FeaturesDict"}
nested = lambda feature: {**TOP, "featuresDict": {"features": {"image": feature}}}
text = json.dumps({"pythonClassName": "ran_of_a_file.P", "jsonFeature": {"json": "{}"}})
FEATURES = {
  "at the top": {"pythonClassName": "ran_of_a_file.P", "jsonFeature": {"json": "{}"}},
  "nested": nested({"pythonClassName": "ran_of_a_file.P"}),
  "under protobuf's other spelling": nested({"python_class_name": "ran_of_a_file.deeper.P"}),
  "in the form before protobuf": {"type": "ran_of_a_file.P", "content": {}},
  "in a text that is JSON": {
    "type": f"{OWN}.features_dict.FeaturesDict",
    "proto_cls": "tensorflow_datasets.FeaturesDict",
    "content": json.dumps({"features": {"a": {"pythonClassName": "ran_of_a_file.P"}}}),
  },
  "in a text in a text": {**TOP, "jsonFeature": {"json": " " + json.dumps([text])}},
  "beside tfds' own": nested({"pythonClassName": "tensorflow_datasets.core.features_.ran_of_a_file.P"}),
}


@pytest.fixture
def marked(tmp_path, monkeypatch):
  """A module that leaves a mark when it is imported, where `python -m cm_jax` would find it."""
  mark = tmp_path / "ran"
  source = f"open({str(mark)!r}, 'w').close()\nfrom cm_jax.data import sources\n"
  (tmp_path / "ran_of_a_file.py").write_text(f"{source}get = lambda: sources.open_source('digits:train')\n")
  monkeypatch.syspath_prepend(tmp_path)
  yield mark
  sys.modules.pop("ran_of_a_file", None)


def stored_run(folder, source: str):
  config = tiny.config()
  config.data.source, config.data.image_shape = source, (8, 8, 1)
  run.write_config(folder, config)
  return folder


@pytest.mark.parametrize("more", [(), ("--config.run.num_steps=9",), ("--config.data.conditional=False",)])
def test_a_stored_source_that_is_code_has_to_be_given_again(tmp_path, marked, capsys, more):
  source = "python:ran_of_a_file:get"
  workdir = stored_run(tmp_path / "run", source)
  assert cli.run(["train", f"--workdir={workdir}", "--noprogress", *more]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and f"--config.data.source={source}" in said and not marked.exists()


def test_a_stored_source_that_is_code_counts_when_a_flag_gives_it(tmp_path, marked, capsys):
  workdir, source = stored_run(tmp_path / "run", "python:ran_of_a_file:get"), "python:ran_of_a_file:nothing"
  assert cli.run(["train", f"--workdir={workdir}", f"--config.data.source={source}"]) == 2
  assert "no attribute" in capsys.readouterr().err and marked.exists()


def test_nothing_measures_a_model_by_code_that_its_run_names(tmp_path, marked):
  model = model_of(run.read_config(stored_run(tmp_path / "run", "python:ran_of_a_file:get")) or {}, {})
  assert model.provenance["source"] is None
  with pytest.raises(UserError, match="or it is code"):
    choose_sources(model)
  assert not marked.exists()


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("name", FEATURES)
def test_a_prepared_set_names_features_of_tfds_only(tmp_path, marked, name, file):
  spec = write_tfds(tmp_path / "set", PIXELS[3])
  described = tmp_path / "set" / "own" / "1.0.0" / file
  told = {**json.loads(described.read_text()), "features": FEATURES[name]}
  described.write_text(json.dumps(FEATURES[name] if file == "features.json" else told))
  with pytest.raises(UserError, match="tensorflow_datasets.core.features"):
    open_source(spec)
  assert not marked.exists()
