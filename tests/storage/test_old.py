"""What commit 6ef49a5 wrote, before files had formats and models a kind, opens; what is newer does not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cm_jax import config as config_lib
from cm_jax.errors import UserError
from cm_jax.evaluation import records
from cm_jax.storage import lines, run, weights

OLD = Path(__file__).parent / "old"
SHA256 = "80cb92c5bbd8844a68d02e263cde43fdf289aa1ad701187be6ed8c136b56bbb1"


def test_a_config_without_a_format_opens_and_keeps_its_identity():
  stored = run.read_config(OLD / "run")
  assert stored is not None and "format" not in stored and "num_images" not in stored
  assert run.identity(stored) == SHA256


def test_its_identity_stays_when_the_run_goes_on_under_todays_defaults(tmp_path):
  shutil.copytree(OLD / "run", tmp_path / "run")
  run.write_config(tmp_path / "run", config_lib.default())
  again = run.read_config(tmp_path / "run")
  assert run.identity(again) == again["config_sha256"] == SHA256
  assert again["run"] == config_lib.plain_json(config_lib.default().run)
  before = run.read_config(OLD / "run")
  assert {key: again[key] for key in before if key not in config_lib.MAY_DIFFER} == {
    key: value for key, value in before.items() if key not in config_lib.MAY_DIFFER
  }


def test_a_weights_folder_without_a_kind_loads_and_says_that_it_has_none():
  params, info = weights.load_weights(OLD / "weights")
  assert info["kind"] is None and info["format"] == 1 and info["image_shape"] == (8, 8, 1)
  assert info["network"]["name"] == "toy" and info["precond"] == {"name": "boundary"}
  assert all(np.isfinite(array).all() for array in weights.flatten(params).values())


def test_its_measurements_read():
  (record,) = records.read(run.RunFolder.at(OLD / "run").evaluations)
  assert (record.metric, record.value, record.config_sha256) == ("fd_digits", 12.5, SHA256)
  metrics = lines.read(run.RunFolder.at(OLD / "run").metrics)
  assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("file", ["run/config.json", "weights/model.json"])
def test_what_a_newer_version_wrote_is_refused_in_one_line(tmp_path, file):
  shutil.copytree(OLD, tmp_path / "new")
  path = tmp_path / "new" / file
  path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3, "more": {"to": "come"}}))
  with pytest.raises(
    UserError, match=f"^{path}: format = 3: expected 1 to 2, which this version of cm_jax reads"
  ) as error:
    run.read_config(path.parent) if path.name == "config.json" else weights.load_weights(path.parent)
  assert "\n" not in str(error.value)
