"""evaluate and report end to end with a tiny model: by default they look at the run's own data."""

import json
import shutil

import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.data.sources import images, labels, open_source
from cm_jax.evaluation.features import save_features, train_features
from cm_jax.training import loop
from tests import tiny
from tests.cli.weights import weights_folder


@pytest.fixture(scope="module")
def features(tmp_path_factory):
  """Features of the digits, hardly trained."""
  path, source = tmp_path_factory.mktemp("features") / "features", open_source("digits")
  save_features(path, train_features(images(source), labels(source), seed=0, num_steps=5))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, features):
  """Two runs, one of the digits and one of a file of the user's; features."""
  path = tmp_path_factory.mktemp("evaluate")
  source = open_source("digits")
  np.savez(path / "mine.npz", images(source)[:200], labels(source)[:200])
  for name, data in (("digits", "digits:train"), ("mine", f"npz:{path / 'mine.npz'}")):
    config = tiny.config(tiny.CT, num_steps=3)
    config.data.source = data
    loop.train(build(config), path / name, progress=False)
  shutil.copytree(features, path / "features")
  return path


def evaluate(folder, name, *arguments: str) -> int:
  shared = (f"--features={folder / 'features'}", "--num=24", "--batch_size=8")
  return run(["evaluate", f"--workdir={folder / name}", *shared, *arguments])


def read(folder, name) -> list[dict]:
  return [json.loads(line) for line in (folder / name / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_is_measured_by_its_own_data_and_reported(folder, capsys):
  assert evaluate(folder, "digits", "--sigmas=80", "--sigmas=80,2") == 0
  first = capsys.readouterr().out
  assert "2 samplers measured\n" in first
  assert evaluate(folder, "digits", "--sigmas=80", "--sigmas=80,2") == 0
  again = capsys.readouterr().out
  assert "0 samplers measured, 2 as before" in again
  row = "| digits | 2   | 80, 2  |"
  assert row in first and next(line for line in again.splitlines() if row in line) in first
  assert evaluate(folder, "mine") == 0
  assert "| FD-npz" in capsys.readouterr().out
  digits, mine = read(folder, "digits"), read(folder, "mine")
  metrics = ["fd_digits", "class_entropy", "nn_distance"]
  real = ["fd_digits_floor", "nn_distance_real"]
  assert [r["metric"] for r in digits] == [
    *real,
    *metrics,
    *metrics,
    "images_per_second",
    "images_per_second",
  ]
  assert (
    {r["reference"] for r in digits[:8]} == {"digits"}
    and digits[2]["average"] == "ema"
    and digits[2]["step"] == 3
  )
  assert [r["metric"] for r in mine] == ["fd_npz_floor", "fd_npz", *metrics[1:], "images_per_second"]
  assert mine[1]["reference"] == f"npz:{folder / 'mine.npz'}" and mine[1]["sigmas"] == [80.0]
  assert sorted(path.name for path in (folder / "digits" / "samples").glob("nfe*")) == [
    "nfe_001.png",
    "nfe_002.png",
  ]
  assert (folder / "digits" / "samples" / "nearest_pixels_nfe_002.png").exists()
  capsys.readouterr()
  (folder / "other").mkdir()
  (folder / "other" / "config.json").write_text((folder / "mine" / "config.json").read_text())
  assert run(["report", f"--folder={folder}"]) == 0
  printed = capsys.readouterr().out
  assert "| FD-digits |" in printed and "| FD-npz" in printed and "(-)" in printed
  assert "left out: other, which was not evaluated" in printed and printed.count("left out") == 1


def test_weights_are_measured_against_what_is_given(features, tmp_path, capsys):
  weights = weights_folder(tmp_path / "weights")
  arguments = [
    f"--model={weights}",
    f"--features={features}",
    "--num=8",
    f"--out={tmp_path / 'out'}",
  ]
  assert run(["evaluate", *arguments, "--reference=digits"]) == 0
  records = read(tmp_path, "out")
  assert (
    records[1]["metric"] == "fd_digits"
    and records[1]["config_sha256"] is None
    and records[1]["average"] is None
  )
  assert run(["report", f"--folder={tmp_path}"]) == 0
  assert "| out    | 1   | 80" in capsys.readouterr().out


@pytest.mark.slow
def test_several_ways_of_sampling_at_once_are_refused(folder, capsys):
  before = read(folder, "digits") if (folder / "digits" / "evaluations.jsonl").exists() else None
  assert evaluate(folder, "digits", "--sigmas=80", "--num_steps=2") == 2
  assert "--num_steps = 2: expected either --sigmas or --num_steps" in capsys.readouterr().err
  assert evaluate(folder, "digits", "--train_source=digit") == 2
  assert "--train_source = digit: expected 'digits' (did you mean it?)" in capsys.readouterr().err
  assert before is None or read(folder, "digits") == before
