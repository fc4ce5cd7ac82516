"""A checkpoint is what was written, a run goes on only with what it was made with, what is gone is told."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cm_jax.assembly import build, load_model
from cm_jax.assembly.complete import current
from cm_jax.errors import UserError
from cm_jax.storage import run as run_lib
from cm_jax.training import loop, step_folder
from cm_jax.training.checkpoint import CheckpointStore, Damaged
from cm_jax.training.program import Program
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
  """A run with checkpoints at 2, 4 and 6."""
  folder = tmp_path_factory.mktemp("trained") / "run"
  config = tiny.config(num_steps=6, checkpoint_every=2, keep_checkpoints=3)
  loop.train(build(config), folder, progress=False)
  return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
  return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(file: Path, at: int, bit: int = 4) -> None:
  data = bytearray(file.read_bytes())
  data[at] ^= 1 << bit
  file.write_bytes(bytes(data))


def go_on(folder: Path, num_steps: int = 8):
  config = current(run_lib.read_config(folder))
  config.run.num_steps = num_steps
  return loop.train(build(config), folder, progress=False)


def weights_of(folder: Path, **which) -> list[np.ndarray]:
  return [np.asarray(leaf) for leaf in jax.tree.leaves(load_model(folder, **which).params)]


def slowly(*cases):
  """Mark further cases of what the quick suite has an example of: each goes on with the run."""
  return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_flipped_bit_of_every_file_of_an_item_is_noticed(folder, seed):
  chance, step, noticed = np.random.default_rng(seed), folder / "checkpoints" / "4", []
  for item, average in (("averages", "ema"), ("state", "params"), ("extra", "ema")):
    files = [path for path in (step / item).rglob("*") if path.is_file() and path.stat().st_size]
    for file in files:
      content = file.read_bytes()
      flip(file, int(chance.integers(len(content))), int(chance.integers(8)))
      if file.name in ("_sharding", "commit_success.txt"):  # say nothing of the arrays
        load_model(folder, 4, average)
        noticed.append(False)
      else:
        with pytest.raises(Damaged, match=r"not what was written.*; other steps here: 2, 6"):
          load_model(folder, 4, average)
        noticed.append(True)
      file.write_bytes(content)
  print(f"{sum(noticed)} of {len(noticed)} flips noticed, the others in files that no restore reads")


@pytest.mark.parametrize(
  "damage",
  [
    lambda step: flip(step / "sha256.json", 0),
    *slowly(
      lambda step: (step / "sha256.json").unlink(),
      lambda step: (step / "sha256.json").write_text("{}"),
      lambda step: (step / "extra" / "metadata").write_text("[" * 9999),
      lambda step: shutil.rmtree(step / "state"),
    ),
    lambda step: shutil.rmtree(step / "averages"),
    lambda step: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in step.iterdir()],
  ],
)
def test_a_damaged_newest_is_told_and_the_one_before_it_used(folder, damage, capsys):
  newest = folder / "checkpoints" / "6"
  expected = weights_of(folder, step=4, average="params")
  damage(newest)
  step = load_model(folder, average="params").provenance["step"]
  said = capsys.readouterr().err
  if step == 4:
    assert said.count("\n") == 1 and "checkpoints/6 is damaged, step 4 is used" in said
    jax.tree.map(np.testing.assert_array_equal, weights_of(folder, average="params"), expected)
    with pytest.raises(Damaged, match=r"checkpoint = .*checkpoints/6: expected a readable checkpoint"):
      load_model(folder, 6, "params")
  else:  # nothing that these weights need
    assert not (newest / "averages").exists()
  capsys.readouterr()
  whole = go_on(folder)
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "checkpoints/6 is damaged, training goes on from 4" in said
  assert (folder / "checkpoints" / "6.damaged").is_dir() and int(whole.step) == 8
  assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] == list(range(1, 9))
  assert load_model(folder).provenance["step"] == 8


def test_all_damaged_is_one_error_and_nothing_is_written(folder):
  for step in (folder / "checkpoints").iterdir():
    flip(step / "extra" / "metadata", -20)
  before = sorted(folder.rglob("*"))
  with pytest.raises(UserError, match=r"checkpoints/6: expected a readable .*other steps here: 2, 4"):
    go_on(folder)
  assert sorted(folder.rglob("*")) == before


def test_a_newer_format_is_no_damage(folder):
  step = folder / "checkpoints" / "6"
  metadata = step / "extra" / "metadata"
  metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "format": 7}))
  step_folder.seal(step)
  with pytest.raises(UserError, match="format 1 to 2, not 7") as error:
    go_on(folder)
  assert not isinstance(error.value, Damaged)


def test_a_checkpoint_from_before_the_seal_is_read(folder):
  step = folder / "checkpoints" / "6"
  metadata = step / "extra" / "metadata"
  extra = json.loads(metadata.read_text())
  kept = {key: extra[key] for key in ("fingerprint", "seconds", "config_sha256")}
  metadata.write_text(json.dumps({**kept, "format": 1}))
  (step / "sha256.json").unlink()
  assert load_model(folder).provenance["step"] == 6 and int(go_on(folder).step) == 8
  stored = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**stored, "config_sha256": "0" * 64}))
  shutil.rmtree(folder / "checkpoints" / "8")
  with pytest.raises(UserError, match=r"config\.json = 0000"):
    go_on(folder, 9)


@pytest.mark.parametrize(
  "key,value",
  [("noise.sigma_data", 0.7), ("optimizer.learning_rate", 1e-5), ("seed", 3), ("network.width", 12)],
)
def test_a_config_that_was_changed_by_hand_is_told(folder, key, value):
  file = folder / "config.json"
  stored = json.loads(file.read_text())
  *sections, name = key.split(".")
  inner = stored
  for section in sections:
    inner = inner[section]
  inner[name] = value
  stored["run"]["log_every"] = 2  # may change
  file.write_text(json.dumps(stored))
  with pytest.raises(UserError, match=rf"config\.json: {key} = {value}: expected .*changed since"):
    load_model(folder)
  with pytest.raises(UserError, match=rf"config\.{key} = {value}: expected .*config\.json was changed"):
    go_on(folder)
  assert json.loads(file.read_text()) == stored


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_checkpoints_that_are_gone_are_told(folder, how):
  shutil.rmtree(folder / "checkpoints")
  if how == "emptied":
    (folder / "checkpoints").mkdir()
  metrics = (folder / "metrics.jsonl").read_bytes()
  with pytest.raises(UserError, match=r"workdir = .*: expected the checkpoint of step 6, which it wrote"):
    go_on(folder)
  assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew_and_says_so(folder, capsys):
  shutil.rmtree(folder / "checkpoints")
  (folder / "saved.json").unlink()
  assert int(go_on(folder, 3).step) == 3
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "no checkpoint: it was stopped before its first, and begins anew" in said
  shutil.rmtree(folder / "checkpoints")  # killed between the first checkpoint's seal and its name
  (folder / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
  assert int(go_on(folder, 3).step) == 3
  assert CheckpointStore(folder).steps() == [2, 3]


def test_damaged_metrics_are_left_out_and_told(folder, capsys):
  metrics = folder / "metrics.jsonl"
  good = metrics.read_bytes()
  metrics.write_bytes(b'{"step": 1.5}\n\xff\xfe\n{"step": "2"}\n7\n' + good + b'{"step": 7, "lo')
  go_on(folder, 7)
  assert "metrics.jsonl: 4 damaged lines are left out" in capsys.readouterr().err
  assert metrics.read_bytes().startswith(good) and len(metrics.read_text().splitlines()) == 7


def test_the_checkpoint_from_before_a_divergence_is_kept(tmp_path):
  state = Program(build(tiny.config())).create()
  store = CheckpointStore(tmp_path, keep=1)
  made_with = {"fingerprint": "", "seconds": 0.0, "config": {}, "config_sha256": ""}
  for step, good in ((2, 2), (4, 4), (6, 5), (8, 5), (10, 5)):
    store.keep_good(good)
    store.save(state.replace(step=np.int32(step)), made_with)
  store.wait()
  assert store.steps() == [4, 10] and store.newest_until(9) == 4 and store.newest_until(3) is None
  store.keep_good(12)
  store.save(state.replace(step=np.int32(12)), made_with)
  store.close()
  assert store.steps() == [12]
