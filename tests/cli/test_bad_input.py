"""Bad input ends before any work: one line that names field, value and what would be right, status 2, nothing
changed on disk."""

import json
from pathlib import Path

import pytest

from cm_jax import cli
from cm_jax.assembly import build
from cm_jax.training import loop
from tests import tiny

CONFIGS = Path(__file__).parents[2] / "configs"
EDM, CD = f"--config={CONFIGS / 'digits_edm.py'}", f"--config={CONFIGS / 'digits_cd.py'}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
  """A finished run of three steps."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  loop.train(build(tiny.config(num_steps=3)), workdir, progress=False)
  return workdir


def snapshot(*folders: Path) -> dict[str, bytes]:
  return {
    str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()
  }


def refused(capsys, *arguments: str) -> str:
  capsys.readouterr()
  status = cli.run(arguments)
  captured = capsys.readouterr()
  assert status == 2, captured
  assert captured.out == ""
  assert captured.err.count("\n") == 1, captured.err
  assert "Traceback" not in captured.err
  return captured.err


TRAIN = [
  ([EDM, "--config.batch_sise=64"], "--config.batch_sise = 64: expected 'batch_size' (did you mean it?)"),
  (
    [EDM, "--config.optimizer.learn_rate=1"],
    "--config.optimizer.learn_rate = 1: expected 'learning_rate' (did you mean it?)",
  ),
  ([EDM, "--config.seed.x=1"], "--config.seed.x = 1"),
  (["--config.seed=1"], "--config = : expected a config file, since"),
  ([EDM, "--config.batch_size=many"], "batch_size"),
  (
    [EDM, "--config.batch_size=100"],
    "config.batch_size = 100: expected a multiple of 8 devices x 1 micro-batches, such as 96 or 104",
  ),
  ([EDM, "--config.batch_size=0"], "config.batch_size = 0"),
  ([EDM, "--config.accumulation=3"], "config.batch_size = 64: expected a multiple of 8 devices x 3"),
  (
    [EDM, "--config.objective.name=denoisng"],
    "config.objective.name = denoisng: expected 'denoising' (did you mean it?)",
  ),
  (
    [EDM, "--config.network.name=songnet"],
    "config.network.name = songnet: expected 'songunet' (did you mean it?)",
  ),
  ([EDM, "--config.network.dropout=1.5"], "config.network.dropout = 1.5"),
  (
    [EDM, "--config.network.model_channels=33"],
    "config.network.model_channels = 33: expected an even number",
  ),
  ([EDM, "--config.network.augment_dim=-3"], "config.network.augment_dim = -3: expected a whole number"),
  ([EDM, "--config.precond.name=emd"], "config.precond.name = emd: expected 'edm' (did you mean it?)"),
  ([EDM, "--config.optimizer.name=adm"], "config.optimizer.name = adm"),
  ([EDM, "--config.optimizer.schedule=cosin"], "config.optimizer.schedule = cosin: expected 'cosine'"),
  ([EDM, "--config.sampler.name=huen"], "config.sampler.name = huen"),
  (
    [EDM, "--config.data.source=digit:train"],
    "config.data.source = digit:train: expected 'digits' (did you mean it?)",
  ),
  ([EDM, "--config.data.source=folder:/no/such/place"], "config.data.source"),
  ([EDM, "--config.data.image_shape=(9, 9, 1)"], "config.data.image_shape"),
  ([EDM, "--config.noise.sigma_min=-1.0"], "config.noise.sigma_min = -1.0"),
  (
    [EDM, "--config.noise.sigma_max=0.001"],
    "config.noise.sigma_max = 0.001: expected more than sigma_min = 0.002",
  ),
  ([EDM, "--config.mesh.fsdp=3"], "config.mesh.fsdp = 3"),
  ([EDM, "--config.run.num_steps=-1"], "config.run.num_steps = -1"),
  (
    [EDM, "--config.run.num_steps=1201"],
    "config.run.num_steps = 1201: expected no more than the run's length, config.num_images = 76800",
  ),
  ([EDM, "--config.num_images=0"], "config.num_images = 0: expected the length of the run in images"),
  (
    [EDM, "--config.optimizer.decay_images=64"],
    "config.optimizer.decay_images = 1: expected 0, to follow num_images",
  ),
  ([EDM, "--config.run.on_other_data=ignore"], "config.run.on_other_data = ignore: expected error or allow"),
  ([EDM, "--teacher=/no/such/run"], "config.teacher.path"),
  ([CD], "config.teacher.path = : expected a run or weights folder"),
  ([CD, "--teacher=/no/such/run"], "config.teacher.path = /no/such/run: expected a run folder"),
  ([EDM, "--init=/no/such/run"], "config.init.path = /no/such/run: expected a run folder"),
  ([CD, "--config.objective.pairs.scales.value=1", "--teacher=TRAINED"], "config.objective.pairs.scales"),
  (
    [CD, "--config.objective.weight=inverse", "--teacher=TRAINED"],
    "config.objective.weight = inverse: expected 'inverse_gap'",
  ),
  ([CD, "--config.objective.distance.c=-1.0", "--teacher=TRAINED"], "config.objective.distance.c = -1.0"),
  ([EDM, "--init=TRAINED"], "config.init.path = "),
  (["--config=/no/such/config.py"], "/no/such/config.py"),
  (["--config=/no/such/config.py", "--config.seed=1"], "/no/such/config.py"),
  ([], "--config = "),
  ([EDM, "--no_such_flag=1"], "--no_such_flag"),
  ([EDM, "stray"], "arguments = stray: expected flags only"),
]


@pytest.mark.parametrize(
  "arguments, expected",
  TRAIN,
  ids=[" ".join(a.rsplit("/", 1)[-1] for a in given) or "none" for given, _ in TRAIN],
)
def test_train(tmp_path, capsys, trained, arguments, expected):
  before = snapshot(tmp_path, trained)
  given = [argument.replace("TRAINED", str(trained)) for argument in arguments]
  assert expected in refused(capsys, "train", *given, f"--workdir={tmp_path / 'run'}")
  assert snapshot(tmp_path, trained) == before
  assert not (tmp_path / "run").exists()


def test_train_needs_a_workdir(capsys):
  assert "--workdir = " in refused(capsys, "train", EDM)


def test_a_workdir_of_another_config(capsys, trained):
  before = snapshot(trained)
  assert "expected" in refused(capsys, "train", EDM, f"--workdir={trained}")
  error = refused(capsys, "train", f"--workdir={trained}", "--config.seed=1")
  assert "config.seed = 1: expected 0 as in" in error
  assert snapshot(trained) == before


def test_an_unreadable_image(capsys, tmp_path):
  (tmp_path / "images").mkdir()
  (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image")
  error = refused(
    capsys,
    "train",
    EDM,
    f"--config.data.source=folder:{tmp_path / 'images'}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert "a.png" in error
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_unreadable_image_that_is_not_the_first(capsys, tmp_path):
  import numpy as np
  from PIL import Image

  folder = tmp_path / "images"
  folder.mkdir()
  for name in ("a", "b", "c"):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{name}.png")
  (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
  error = refused(
    capsys, "train", EDM, f"--config.data.source=folder:{folder}", f"--workdir={tmp_path / 'run'}"
  )
  assert "b.png" in error
  assert not (tmp_path / "run").exists()


def test_a_corrupt_checkpoint(capsys, tmp_path):
  loop.train(build(tiny.config(num_steps=3)), tmp_path / "run", progress=False)
  for path in (tmp_path / "run" / "checkpoints" / "3").rglob("*"):
    if path.is_file() and path.stat().st_size:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  before = snapshot(tmp_path)
  for command in (["train"], ["sample", f"--out={tmp_path / 'x.png'}"]):
    assert "checkpoint" in refused(capsys, *command, f"--workdir={tmp_path / 'run'}")
  assert snapshot(tmp_path) == before


SAMPLE = [
  (["--sigmas=0.8,80"], "--sigmas = 0.8,80: expected one or more descending noise levels in (0.002, 80]"),
  (["--sigmas=80,80"], "--sigmas = 80,80"),
  (["--sigmas=81"], "--sigmas = 81"),
  (["--sigmas=80,0.002"], "--sigmas = 80,0.002"),
  (["--sigmas=80,nan"], "--sigmas = 80,nan"),
  (["--sigmas="], "--sigmas"),
  (["--sigmas=80,x"], "--sigmas = 80,x"),
  (["--sigmas=80", "--num_steps=3"], "--num_steps = 3: expected either --sigmas or --num_steps"),
  (["--num_steps=0"], "--num_steps = 0"),
  (["--num=0"], "num"),
  (["--seed=-1"], "seed"),
  (["--step=7"], "--step = 7: expected a stored step: 3"),
  (["--average=emma"], "--average = emma: expected 'ema' (did you mean it?)"),
]


@pytest.mark.parametrize("arguments, expected", SAMPLE, ids=[" ".join(given) for given, _ in SAMPLE])
def test_sample(tmp_path, capsys, trained, arguments, expected):
  before = snapshot(tmp_path, trained)
  assert expected in refused(
    capsys, "sample", f"--workdir={trained}", f"--out={tmp_path / 'x.png'}", *arguments
  )
  assert snapshot(tmp_path, trained) == before


def test_sample_without_a_place_or_a_model(tmp_path, capsys, trained):
  assert "--out = " in refused(capsys, "sample", f"--workdir={trained}")
  assert "--model = " in refused(capsys, "sample", f"--out={tmp_path / 'x.png'}")
  assert "--workdir = " in refused(capsys, "sample", f"--out={tmp_path / 'x.png'}", f"--workdir={tmp_path}")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").write_text("kept")
  assert "--out" in refused(capsys, "sample", f"--workdir={trained}", f"--out={tmp_path / 'full'}")
  for name in ("x.jpeg", "x.PNG", "x.tar", "x.webp"):
    said = refused(capsys, "sample", f"--workdir={trained}", f"--out={tmp_path / name}")
    assert f"{name}: expected a name that ends in .png, .npz or .zip" in said
  (tmp_path / "old.png").write_text("kept")
  said = refused(capsys, "sample", f"--workdir={trained}", f"--out={tmp_path / 'old.png'}")
  assert "old.png: expected a path that does not exist yet" in said
  assert (tmp_path / "old.png").read_text() == "kept"


def test_evaluate(tmp_path, capsys, trained):
  before = snapshot(trained)
  workdir, features = f"--workdir={trained}", f"--features={tmp_path}"
  assert "--features = " in refused(capsys, "evaluate", workdir)
  assert "features.json" in refused(capsys, "evaluate", workdir, features)
  assert "--folder = " in refused(capsys, "report")
  assert "no evaluated run" in refused(capsys, "report", f"--folder={tmp_path}")
  assert snapshot(trained) == before


def test_an_unknown_command(capsys):
  assert "command = tarin: expected 'train' (did you mean it?)" in refused(capsys, "tarin")


def test_no_command_prints_the_commands(capsys):
  assert cli.run([]) == 2
  assert "train" in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_explains_itself(capsys, command):
  assert cli.run([command, "--help"]) == 0
  out = capsys.readouterr().out
  assert f"python -m cm_jax {command}" in out
  assert "--" in out


def test_a_run_goes_on_with_its_own_config_and_only_run_and_mesh_may_be_overridden(tmp_path, capsys):
  workdir = tmp_path / "run"
  loop.train(build(tiny.config(num_steps=3)), workdir, progress=False)
  stored = json.loads((workdir / "config.json").read_text())
  del stored["run"]["ram_gb"]  # as a run from before that key was
  (workdir / "config.json").write_text(json.dumps(stored))
  before = snapshot(workdir)
  said = refused(capsys, "train", f"--workdir={workdir}", "--config.batch_size=32")
  assert "config.batch_size = 32: expected 16 as in" in said
  assert "did you mean it?" in refused(capsys, "train", f"--workdir={workdir}", "--config.run.num_step=5")
  assert snapshot(workdir) == before
  assert (
    cli.run(
      [
        "train",
        f"--workdir={workdir}",
        "--noprogress",
        "--config.run.num_steps=5",
        "--config.run.num_samples=0",
      ]
    )
    == 0
  )
  assert "trained to step 5" in capsys.readouterr().out
  assert json.loads((workdir / "config.json").read_text())["run"]["num_steps"] == 5
