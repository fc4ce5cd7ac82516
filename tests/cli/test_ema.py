"""`python -m cm_jax ema`: list, make, use; bad input changes nothing."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import build, load_model
from cm_jax.storage import weights
from cm_jax.training import loop
from cm_jax.training.averages import posthoc, snapshots
from cm_jax.training.program import Program
from tests import tiny
from tests.storage.places import STORED

REPO = Path(__file__).parents[2]


def write_config(path: Path, averages: dict, **run: int) -> str:
  lines = [
    "import sys",
    f"sys.path.insert(0, {str(REPO)!r})",
    "from tests import tiny",
    "",
    "def get_config():",
  ]
  lines += [
    f"  config = tiny.config(None, **{run!r})",
    f"  config.averages = {averages!r}",
    "  return config",
    "",
  ]
  path.write_text("\n".join(lines))
  return f"--config={path}"


AVERAGES = {"ema_05": {"name": "power", "sigma_rel": 0.05}, "ema_10": {"name": "power", "sigma_rel": 0.1}}
TRUTH = {"direct": {"name": "power", "sigma_rel": 0.15}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
  """A run of 40 steps with a snapshot every 2; a second one tracks sigma_rel 0.15 itself."""
  folder = tmp_path_factory.mktemp("runs")
  run = {"num_steps": 40, "log_every": 40, "checkpoint_every": 40}
  config = write_config(folder / "config.py", AVERAGES, snapshot_every=2, **run)
  assert cli.run(["train", config, f"--workdir={folder / 'run'}", "--noprogress"]) == 0
  direct = tiny.config(None, **run)
  direct.averages = {**AVERAGES, **TRUTH}
  loop.train(build(direct), folder / "direct", progress=False)
  return folder


def contents(*folders: Path) -> dict[str, bytes]:
  return {
    str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()
  }


@pytest.mark.slow
def test_the_average_made_is_the_one_that_training_tracks(trained, tmp_path, capsys):
  out = tmp_path / "weights"
  assert cli.run(["ema", f"--workdir={trained / 'run'}", "--sigma-rel=0.15", f"--out={out}"]) == 0
  made = load_model(out)
  direct = load_model(trained / "direct", average="direct").params
  near = load_model(trained / "direct", average="ema_10").params
  distance = lambda tree: float(
    np.sqrt(sum(np.sum(np.square(d)) for d in jax.tree.leaves(jax.tree.map(np.subtract, tree, direct))))
  )
  assert distance(made.params) < 0.01 * distance(near)
  printed = capsys.readouterr().out
  assert "20 snapshots" in printed and "ema_05 (sigma_rel 0.05), ema_10 (sigma_rel 0.1)" in printed
  assert "steps: 2, 4, 6," in printed
  times, widths = np.repeat(np.arange(2, 42, 2), 2), np.tile([0.05, 0.1], 20)
  weights = posthoc.coefficients(times, widths, [40], [0.15])[:, 0]
  error = posthoc.profile_error(times, widths, 40, 0.15, weights)
  assert (
    f"sigma_rel 0.15 at step 40, profile error {error:.2%}, largest coefficient {np.abs(weights).max():.3g}"
    in printed
  )


@pytest.mark.slow
def test_a_stored_average_comes_back(trained, tmp_path):
  assert cli.run(["ema", f"--workdir={trained / 'run'}", "--sigma-rel=0.1", f"--out={tmp_path / 'w'}"]) == 0
  ours, theirs = load_model(tmp_path / "w").params, load_model(trained / "run", average="ema_10").params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.slow
def test_the_folder_is_a_model_and_a_start(trained, tmp_path, capsys):
  out = tmp_path / "weights"
  assert (
    cli.run(["ema", f"--workdir={trained / 'run'}", "--sigma-rel=.075", "--step=20", f"--out={out}"]) == 0
  )
  info = json.loads((out / "model.json").read_text())
  assert info["source"] == "run, sigma_rel 0.075 at step 20" and info["image_shape"] == [8, 8, 1]
  assert (info["kind"], info["peer"], info["licence"]) == ("diffusion", "cm_jax", "yours")
  assert (
    cli.run(["sample", f"--model={out}", "--num=2", "--batch_size=8", f"--out={tmp_path / 'x.npz'}"]) == 0
  )
  assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 8, 8, 1)
  config = tiny.config(tiny.CD)
  config.teacher.path, config.init.path = str(out), str(out)
  experiment = build(config)
  assert experiment.teacher is not None
  begun, given = Program(experiment).create().params["net"], load_model(out).params["net"]
  jax.tree.map(np.testing.assert_array_equal, begun, given)


@pytest.mark.slow
def test_several_widths_make_a_folder_each(trained, tmp_path, capsys):
  arguments = [
    "ema",
    f"--workdir={trained / 'run'}",
    "--sigma-rel=0.05,0.075",
    f"--out={tmp_path / 'widths'}",
  ]
  assert cli.run(arguments) == 0
  assert sorted(path.name for path in (tmp_path / "widths").iterdir()) == ["0.05", "0.075"]
  assert (
    cli.run(["ema", f"--workdir={trained / 'run'}", "--sigma-rel=0.075", f"--out={tmp_path / 'one'}"]) == 0
  )
  one, several = (
    weights.load_weights(folder)[0] for folder in (tmp_path / "one", tmp_path / "widths" / "0.075")
  )
  jax.tree.map(np.testing.assert_array_equal, one, several)
  assert cli.run(arguments) == 2 and "--overwrite" in capsys.readouterr().err
  assert cli.run([*arguments, "--overwrite"]) == 0  # and again, over what is there


@pytest.mark.slow
def test_without_a_width_it_lists_and_writes_nothing(trained, capsys):
  before = contents(trained)
  assert cli.run(["ema", f"--workdir={trained / 'run'}", "--step=6"]) == 0
  printed = capsys.readouterr().out.splitlines()
  assert (
    printed[0].endswith("of ema_05 (sigma_rel 0.05), ema_10 (sigma_rel 0.1)")
    and ": 3 snapshots (" in printed[0]
  )
  assert printed[1:] == ["steps: 2, 4, 6"]
  assert contents(trained) == before


BAD = [
  (["--sigma-rel=0.3", "--out={out}"], "--sigma-rel = 0.3: expected relative widths between 0 and 0.289"),
  (["--sigma-rel=0", "--out={out}"], "--sigma-rel = 0: expected relative widths"),
  (["--sigma-rel=nan", "--out={out}"], "--sigma-rel = nan: expected relative widths"),
  (["--sigma-rel=0.05,wide", "--out={out}"], "--sigma-rel = wide: expected relative widths"),
  (["--sigma-rel=0.075"], "--out = : expected the weights folder to write"),
  (["--out={out}"], "--sigma-rel = : expected the relative width to write"),
  (["--sigma-rel=0.075", "--step=3", "--out={out}"], "--step = 3: expected -1 or a stored step: 2, 4, 6"),
  (["--sigma-rel=0.075", "--out={folder}/run"], "expected an empty folder, a weights folder to replace"),
  (["--sigma-rel=0.05,0.075", "--out={folder}/config.py"], "expected a folder to put 0.05, 0.075 into"),
  (["--sigma-rle=0.075", "--out={out}"], "--sigma-rle = "),
  (
    ["--sigma-rel=0.075", "--workdir={folder}/direct", "--out={out}"],
    "expected a run with snapshots: averages of profile power",
  ),
  (
    ["--sigma-rel=0.075", "--workdir={out}", "--out={out}"],
    "expected a run folder (config.json, snapshots/)",
  ),
  (["--workdir="], "--workdir = : expected a run with snapshots"),
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments, message", BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_one_line_and_changes_nothing(arguments, message, trained, tmp_path, capsys):
  before = contents(trained)
  places = {"out": tmp_path / "out", "folder": trained}
  assert (
    cli.run(["ema", f"--workdir={trained / 'run'}", *(argument.format(**places) for argument in arguments)])
    == 2
  )
  printed = capsys.readouterr()
  assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err
  assert contents(trained) == before and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_snapshots_on_a_bucket_are_those_on_the_disk(trained):
  for file in (trained / "run" / "snapshots").iterdir():
    STORED[f"memory://bucket/run/snapshots/{file.name}"] = file.read_bytes()
  try:
    there, here = (snapshots.choose(place, 6) for place in ("memory://bucket/run", trained / "run"))
    assert [found._replace(path=None) for found in there] == [found._replace(path=None) for found in here]
    weights = np.eye(6)[:, 4:]
    jax.tree.map(
      np.testing.assert_array_equal, *(snapshots.combine(found, weights) for found in (there, here))
    )
  finally:
    STORED.clear()


def test_training_without_a_power_average_is_refused_before_it_starts(tmp_path, capsys):
  config = write_config(tmp_path / "config.py", {"ema": {"name": "constant", "mu": 0.9}}, snapshot_every=2)
  assert cli.run(["train", config, f"--workdir={tmp_path / 'run'}", "--noprogress"]) == 2
  assert (
    "config.run.snapshot_every = 2: expected 0, or an average with a power-function profile"
    in capsys.readouterr().err
  )
  assert not (tmp_path / "run").exists()
