"""A run from before the redesign (commit 6ef49a5): it opens, resumes as it would have gone on, and keeps its
identity."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import build, load_model
from cm_jax.assembly.complete import current
from cm_jax.storage import run, weights
from cm_jax.training import loop
from cm_jax.training.averages.track import read_average

OLD = Path(__file__).parents[1] / "storage" / "old"


@pytest.fixture
def folder(tmp_path) -> Path:
  """CT on the digits with a toy network, stopped after 5 steps of the 12 that its cosine is long."""
  return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


@pytest.mark.slow
def test_it_goes_on_as_before_its_length_is_its_decays_and_its_identity_stays(folder):
  stored = run.read_config(folder)
  config = current(stored)
  assert config.num_images == 12 * 16 and config.run.num_steps == 5
  config.run.num_steps = 9
  state = loop.train(build(config), folder, progress=False)
  found = dict(weights.flatten(jax.device_get(state.params)))
  for name in ("ema", "target"):
    average = jax.device_get(read_average(state.opt_state, name))
    found |= {f"{name}/{key}": value for key, value in weights.flatten(average).items()}
  with np.load(OLD / "after_9.npz") as expected:
    assert set(found) == set(expected.files)
    for name in expected.files:
      np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
  after = run.read_config(folder)
  assert run.identity(after) == run.identity(stored) and after["run"]["num_steps"] == 9
  unchanged = {key: value for key, value in after.items() if key not in ("run", "mesh", "config_sha256")}
  assert unchanged == {key: value for key, value in stored.items() if key not in ("run", "mesh")}
  assert load_model(folder).provenance["config_sha256"] == run.identity(stored)


@pytest.mark.slow
def test_it_goes_on_from_the_command_line_to_its_end_and_no_further(folder, capsys):
  beyond = ["train", f"--workdir={folder}", "--noprogress", "--config.run.num_steps=13"]
  assert cli.run(beyond) == 2
  assert "config.run.num_steps = 13: expected no more than the run's length" in capsys.readouterr().err
  assert cli.run(["train", f"--workdir={folder}", "--noprogress", "--config.run.num_steps=0"]) == 0
  assert "trained to step 12" in capsys.readouterr().out


def test_its_model_knows_what_it_is_and_an_old_weights_folder_is_asked(folder, tmp_path, capsys):
  assert load_model(folder).kind == "consistency"
  old = OLD / "weights"
  assert load_model(old).kind is None and load_model(old, kind="consistency").kind == "consistency"
  sample = ["sample", f"--model={old}", "--num=4", f"--out={tmp_path / 'x.png'}"]
  assert cli.run(sample) == 2
  assert "--kind = " in capsys.readouterr().err
  assert cli.run([*sample, "--kind=consistency"]) == 0
  assert (tmp_path / "x.png").exists()
  assert cli.run(["sample", f"--workdir={folder}", "--kind=diffusion", f"--out={tmp_path / 'y.png'}"]) == 2
  assert "--kind = diffusion: expected consistency" in capsys.readouterr().err


def test_a_newer_format_is_refused_in_one_line(folder, capsys):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**config, "format": run.FORMAT + 1}))
  assert cli.run(["train", f"--workdir={folder}"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and f"format = {run.FORMAT + 1}" in error
