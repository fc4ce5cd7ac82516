"""search-steps end to end with a tiny model: it stores what --nfe samples with; bad input writes nothing."""

import json

import pytest

from cm_jax.assembly import build, load_model
from cm_jax.cli import run
from cm_jax.data.sources import images, labels, open_source
from cm_jax.evaluation.features import save_features, train_features
from cm_jax.training import loop
from tests import tiny

pytestmark = pytest.mark.slow  # every one needs a trained run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("search")
  loop.train(build(tiny.config(tiny.CT, num_steps=3)), path / "run", progress=False)
  source = open_source("digits")
  save_features(path / "features", train_features(images(source), labels(source), seed=0, num_steps=5))
  return path


def test_what_is_found_is_stored_and_sampled_with(folder, capsys):
  arguments = [
    f"--workdir={folder / 'run'}",
    f"--features={folder / 'features'}",
    "--num=40",
    "--batch_size=20",
  ]
  assert run(["search-steps", *arguments, "--nfe=2"]) == 0
  stored = json.loads((folder / "run" / "sigmas.json").read_text())
  assert set(stored) == {"2"} and stored["2"]["n"] == 40 and stored["2"]["metric"] == "fd_digits"
  assert load_model(folder / "run").sigmas_by_nfe == {2: tuple(stored["2"]["sigmas"])}
  assert (folder / "run" / "search_nfe_002.png").is_file()
  assert (
    run(["sample", f"--workdir={folder / 'run'}", "--nfe=2", "--num=4", f"--out={folder / 'x.npz'}"]) == 0
  )
  assert "2 network evaluations" in capsys.readouterr().out
  assert (
    run(["sample", f"--workdir={folder / 'run'}", "--nfe=3", "--num=4", f"--out={folder / 'y.npz'}"]) == 2
  )
  assert "--nfe = 3: expected one of 1, 2 (search-steps finds others)" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--nfe=1"], "--nfe = 1: expected 2 to 8"),
    (["--nfe=two"], "--nfe = two"),
    (["--method=grid"], "--method = grid"),
    (["--features="], "--features = : expected a folder that train-features wrote"),
    (["--features=nowhere"], "nowhere"),
    (["--reference=nothing"], "nothing"),
  ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, expected):
  before = sorted((folder / "run").iterdir())
  assert (
    run(["search-steps", f"--workdir={folder / 'run'}", f"--features={folder / 'features'}", *arguments]) == 2
  )
  error = capsys.readouterr().err.strip()
  assert expected in error and "\n" not in error
  assert sorted((folder / "run").iterdir()) == before
