"""The sample command: every format, interruptions, labels; what is there is whole, however it came about."""

import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.cli.train import sample_grids
from cm_jax.data.sources import images, labels, open_source
from cm_jax.errors import UserError
from cm_jax.storage import samples
from cm_jax.storage.pictures import save_grid
from cm_jax.storage.run import RunFolder
from cm_jax.storage.samples import SampleStore
from cm_jax.training import loop
from tests import tiny
from tests.cli.weights import weights_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sample")
  config = tiny.config(tiny.CT, num_steps=3, num_samples=30)
  config.data.conditional = True
  experiment = build(config)
  grids = sample_grids(experiment, str(folder / "run"))
  loop.train(experiment, folder / "run", [(3, grids)], progress=False)
  return folder / "run"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(samples, "SHARD", 8)


def draw(trained, out, *arguments: str) -> int:
  return run(["sample", f"--workdir={trained}", f"--out={out}", "--num=30", "--batch_size=8", *arguments])


@pytest.mark.slow
def test_every_format_holds_the_same_images_and_labels(trained, tmp_path):
  for name in ("x.npz", "x.zip", "folder"):
    assert draw(trained, tmp_path / name) == 0
  with np.load(tmp_path / "x.npz") as stored:
    drawn, classes = stored["arr_0"], stored["arr_1"]
  assert drawn.shape == (30, 8, 8, 1) and drawn.dtype == np.uint8
  assert classes.tolist() == [i % 10 for i in range(30)]
  for spec in (f"npz:{tmp_path / 'x.npz'}", f"zip:{tmp_path / 'x.zip'}", f"folder:{tmp_path / 'folder'}"):
    source = open_source(spec)
    np.testing.assert_array_equal(images(source), drawn)
    np.testing.assert_array_equal(labels(source), classes)
  assert json.loads(zipfile.ZipFile(tmp_path / "x.zip").read("dataset.json"))["labels"][3] == [
    "00000/img00000003.png",
    3,
  ]
  assert not list(tmp_path.glob(".*"))  # nothing hidden is left


@pytest.mark.slow
def test_one_class_can_be_asked_for(trained, tmp_path):
  assert draw(trained, tmp_path / "x.npz", "--label=7") == 0
  with np.load(tmp_path / "x.npz") as stored:
    assert set(stored["arr_1"].tolist()) == {7}


@pytest.mark.slow
def test_a_picture_has_the_classes_over_its_images(trained, tmp_path):
  assert draw(trained, tmp_path / "all.npz") == draw(trained, tmp_path / "all.png") == 0
  drawn = np.load(tmp_path / "all.npz")["arr_0"]
  save_grid(drawn, tmp_path / "expected.png", columns=10, titles=[str(i % 10) for i in range(30)])
  sheets = {path.stem: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
  np.testing.assert_array_equal(sheets["all"], sheets["expected"])
  while_training = np.asarray(Image.open(RunFolder.at(trained).grid_of_step(3)))
  assert while_training.shape == sheets["all"].shape
  np.testing.assert_array_equal(while_training[:22], sheets["all"][:22])  # the line of titles
  assert (
    draw(trained, tmp_path / "one.npz", "--label=7") == draw(trained, tmp_path / "one.png", "--label=7") == 0
  )
  save_grid(np.load(tmp_path / "one.npz")["arr_0"], tmp_path / "sevens.png", columns=6, titles=["7"] * 30)
  sheets = [np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "sevens.png")]
  np.testing.assert_array_equal(*sheets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.npz", "x.zip", "folder"])
def test_an_interrupted_run_goes_on_where_it_stopped(trained, tmp_path, monkeypatch, name):
  assert draw(trained, tmp_path / f"whole_{name}") == 0
  put, calls = SampleStore.put, []

  def cut_off(self, start, shard):
    put(self, start, shard)
    calls.append(start)
    if len(calls) in (1, 3):
      self.wait()
      raise KeyboardInterrupt

  monkeypatch.setattr(SampleStore, "put", cut_off)
  for _ in range(2):
    assert draw(trained, tmp_path / name) == 130
    assert not (tmp_path / name).exists()
  assert draw(trained, tmp_path / name) == 0
  assert calls == [0, 8, 16, 24]  # every shard once
  kind = {"x.npz": "npz", "x.zip": "zip"}.get(name, "folder")
  whole, parts = (images(open_source(f"{kind}:{tmp_path / (prefix + name)}")) for prefix in ("whole_", ""))
  np.testing.assert_array_equal(parts, whole)


@pytest.mark.slow
def test_going_on_with_other_samples_is_refused(trained, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(SampleStore, "finish", lambda *_: (item for item in ()).throw(KeyboardInterrupt))
  assert draw(trained, tmp_path / "x.npz") == 130
  monkeypatch.undo()
  monkeypatch.setattr(samples, "SHARD", 8)
  assert draw(trained, tmp_path / "x.npz", "--seed=1") == 2
  assert "--seed = 1: expected 0, as the interrupted run in" in capsys.readouterr().err
  assert draw(trained, tmp_path / "x.npz") == 0


@pytest.mark.slow
def test_guidance_changes_the_samples_and_one_does_not(trained, tmp_path):
  for name, guidance in (("none", ()), ("one", ("--guidance=1",)), ("three", ("--guidance=3",))):
    assert draw(trained, tmp_path / f"{name}.npz", *guidance) == 0
  drawn = {name: np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int) for name in ("none", "one", "three")}
  assert np.abs(drawn["one"] - drawn["none"]).max() <= 1 and np.abs(drawn["three"] - drawn["none"]).max() > 3


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--label=10"], "--label = 10: expected 0 to 9"),
    (["--nfe=2", "--sigmas=80"], "--nfe = 2: expected neither --sigmas nor --num_steps beside it"),
    (["--sampler=rk4", "--num_steps=3"], "--sampler = rk4"),
    (["--sigmas="], "--sigmas = "),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(trained, tmp_path, capsys, arguments, expected):
  assert draw(trained, tmp_path / "x.npz", *arguments) == 2
  error = capsys.readouterr().err.strip()
  assert expected in error and "\n" not in error
  assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
  (tmp_path / "x.npz").write_text("mine")
  with pytest.raises(UserError, match="^out = "):
    SampleStore(tmp_path / "x.npz", {}, 1, 1)


@pytest.mark.slow
def test_a_float64_state_differs_by_a_level_at_most_and_is_its_own_request(trained, tmp_path):
  assert draw(trained, tmp_path / "single.npz") == 0
  try:
    assert draw(trained, tmp_path / "double.npz", "--state=float64") == 0
  finally:
    jax.config.update("jax_enable_x64", False)
  single, double = (np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int) for name in ("single", "double"))
  assert np.abs(single - double).max() <= 1


@pytest.mark.slow
def test_latents_go_to_an_npz_as_float32_and_nowhere_else(tmp_path, capsys):
  weights_folder(tmp_path / "weights", (4, 4, 4))
  for name in ("x.png", "x.zip", "folder"):
    assert run(["sample", f"--model={tmp_path / 'weights'}", f"--out={tmp_path / name}"]) == 2
    assert "a .npz file: the model makes latents [4, 4, 4]" in capsys.readouterr().err
    assert not (tmp_path / name).exists()
  arguments = [f"--model={tmp_path / 'weights'}", f"--out={tmp_path / 'x.npz'}", "--sigmas=80,0.8", "--num=5"]
  assert run(["sample", *arguments]) == 0
  stored = np.load(tmp_path / "x.npz")["arr_0"]
  assert stored.dtype == np.float32 and stored.shape == (5, 4, 4, 4) and np.isfinite(stored).all()


def test_hosts_that_do_not_assemble_leave_that_to_the_one_that_does(tmp_path):
  rng = np.random.default_rng(0)
  drawn = rng.integers(0, 256, (32, 4, 4, 3), dtype=np.uint8)
  main, other = (SampleStore(tmp_path / "x.zip", {}, 32, 8, assemble=assemble) for assemble in (True, False))
  main.begin()
  shards = main.missing()
  other.collect(lambda indices: [drawn[indices]], shards[1::2])
  assert not list((tmp_path / ".x.zip.part").glob("done*"))
  main.collect(lambda indices: [drawn[indices]], shards[::2])
  main.finish(np.arange(32, dtype=np.int32) % 4)
  np.testing.assert_array_equal(images(open_source(f"zip:{tmp_path / 'x.zip'}")), drawn)


@pytest.mark.slow
def test_no_checkpoint_no_orbax(tmp_path):
  """Sampling of a weights folder does not import what reads checkpoints: it is a tenth of its time."""
  command = ["sample", f"--model={weights_folder(tmp_path)}", "--num=2", f"--out={tmp_path / 'images.npz'}"]
  code = f"import sys; from cm_jax.cli import run; run({command}); print('orbax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == "False", done.stdout
  assert (tmp_path / "images.npz").exists()
