"""The run folder: one page of names, a config that keeps its identity, noise levels of runs and weights."""

import inspect
import json

import numpy as np
import pytest

from cm_jax import config as config_lib
from cm_jax.errors import UserError
from cm_jax.storage import run, weights
from tests.storage.places import names, no_room
from tests.storage.test_weights import INFO


def test_every_name_is_its_own_and_in_the_folder(place):
  place = place / "run"
  folder = run.RunFolder.at(place)
  fields = [name for name, value in inspect.getmembers(run.RunFolder) if isinstance(value, property)]
  paths = [getattr(folder, name) for name in fields]
  paths += [folder.grid_of_step(5), folder.grid_of_nfe(2), folder.search(2), folder.snapshot(5)]
  assert len(set(map(str, paths))) == len(paths) == len(fields) + 4 and len(fields) == 12
  assert all(str(path).startswith(f"{place}/") for path in paths) and not folder.path.exists()


def test_the_folder_does_not_move_with_the_working_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(run.RunFolder.at("run").config) == f"{tmp_path}/run/config.json"
  assert str(run.RunFolder.at("gs://bucket/run").config) == "gs://bucket/run/config.json"


def test_the_config_is_written_once_but_for_run_and_mesh(place):
  config = config_lib.default()
  assert run.read_config(place / "run") is None
  run.write_config(place / "run", config)
  stored = run.read_config(place / "run")
  assert stored["format"] == run.FORMAT and run.identity(stored) == config_lib.sha256(config)
  changed = config_lib.default()
  changed.run.log_every, changed.seed = 7, 5
  run.write_config(place / "run", changed)
  again = run.read_config(place / "run")
  assert again["run"]["log_every"] == 7 and again["seed"] == stored["seed"]
  assert run.identity(again) == run.identity(stored) and names(place) == ["run/config.json"]


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{", "the JSON config that training wrote"),
    ("[1]", "config.json = list: expected the JSON config that training wrote, an object"),
    (
      '{"format": 3}',
      r"config.json: format = 3: expected 1 to 2, which this version of cm_jax reads \(a newer",
    ),
    ('{"format": 0}', "format = 0"),
    ('{"format": true}', "format = True"),
    ('{"format": "2"}', "format = 2"),
  ],
)
def test_a_damaged_or_newer_config_is_one_line(place, content, words):
  run.RunFolder.at(place).config.write_bytes(content.encode())
  with pytest.raises(UserError, match=words) as error:
    run.read_config(place)
  assert "\n" not in str(error.value)


def test_noise_levels_are_stored_in_a_run_and_in_a_weights_folder(place):
  assert run.read_sigmas(place / "run") == {}
  run.store_sigmas(place / "run", 2, (80.0, 0.8), {"value": 1.5})
  run.store_sigmas(place / "run", 4, (80.0, 9.0, 1.0, 0.5), {"value": 1.0})
  run.store_sigmas(place / "run", 2, (80.0, 0.7), {"value": 1.25})
  assert run.read_sigmas(place / "run") == {2: (80.0, 0.7), 4: (80.0, 9.0, 1.0, 0.5)}
  assert json.loads((place / "run" / "sigmas.json").read_text())["2"] == {
    "sigmas": [80.0, 0.7],
    "value": 1.25,
  }

  weights.save_weights(place / "w", {"net": {"a": np.ones(2)}}, INFO)
  run.store_sigmas(place / "w", 4, (80.0, 9.0, 1.0, 0.5), {})
  info = weights.load_weights(place / "w")[1]
  assert info["sigmas_by_nfe"] == {2: [80.0, 0.8], 4: [80.0, 9.0, 1.0, 0.5]}
  assert {key: info[key] for key in INFO if key != "sigmas_by_nfe"} == {
    key: value for key, value in INFO.items() if key != "sigmas_by_nfe"
  }


@pytest.mark.parametrize(
  "content", ["{", "[]", '{"2": [80]}', '{"two": {"sigmas": [80]}}', '{"2": {"sigmas": "x"}}']
)
def test_damaged_noise_levels_are_one_line(place, content):
  run.RunFolder.at(place).sigmas.write_bytes(content.encode())
  with pytest.raises(UserError, match=r"sigmas\.json = .*expected what search-steps wrote \(delete the file"):
    run.read_sigmas(place)


def test_a_full_disk_leaves_the_config_and_the_levels_as_they_were(tmp_path, monkeypatch):
  run.write_config(tmp_path, config_lib.default())
  run.store_sigmas(tmp_path, 2, (80.0, 0.8), {})
  before = [(tmp_path / name).read_text() for name in ("config.json", "sigmas.json")]
  monkeypatch.setattr("os.fsync", no_room)
  changed = config_lib.default()
  changed.run.log_every = 7
  with pytest.raises(UserError, match=f"^{tmp_path}/config.json = No space left on device"):
    run.write_config(tmp_path, changed)
  with pytest.raises(UserError, match=f"^{tmp_path}/sigmas.json = No space left on device"):
    run.store_sigmas(tmp_path, 4, (80.0, 0.5), {})
  assert [(tmp_path / name).read_text() for name in ("config.json", "sigmas.json")] == before
  assert names(tmp_path) == ["config.json", "sigmas.json"]
