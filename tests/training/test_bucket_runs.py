"""Runs in an object store (`training/copies.py`): saved, kept, gone on with and read as on a disk. Against
moto's S3 server; real S3 and GCS were not."""

import re
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import build, load_model
from cm_jax.errors import UserError
from cm_jax.storage import bucket, lines, whole
from cm_jax.storage.pictures import encode_png
from cm_jax.storage.run import RunFolder, last_saved
from cm_jax.training import loop
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.program import Program
from tests import needs, tiny
from tests.storage.moto_server import server
from tests.training.test_train import REPO, equal, write_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bucket")]


@pytest.fixture(scope="module")
def served():
  needs.buckets()
  server().make("runs")
  return server()


def files(run: str) -> list[str]:
  store = bucket.filesystem(run)
  return sorted(name.removeprefix(run[5:] + "/") for name in store.find(run))


def losses(run) -> list[float]:
  return [row["loss"] for row in lines.read(RunFolder.at(run).metrics)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
  """A run on the disk, and its last state."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, loop.train(build(config_of(11)), folder, progress=False)


def config_of(num_steps: int, **run):
  return tiny.config(num_steps=num_steps, checkpoint_every=2, **run)


def test_a_run_that_is_stopped_goes_on_exactly_and_leaves_nothing_else(served, whole_run):
  run = "s3://runs/a/parts"
  for stop in (3, 6):
    loop.train(build(config_of(11)), run, (), False, stopped=lambda step, stop=stop: step == stop)
    assert last_saved(run) == stop
  equal(whole_run[1], loop.train(build(config_of(11)), run, (), False))
  assert losses(run) == losses(whole_run[0])
  assert CheckpointStore(run).steps() == CheckpointStore(whole_run[0]).steps()
  top = {name.partition("/")[0] for name in files(run)}
  assert top == {"checkpoints", "config.json", "metrics.jsonl", "saved.json", "tensorboard"}
  model, same = load_model(run), load_model(whole_run[0])
  jax.tree.map(np.testing.assert_array_equal, model.params, same.params)


def test_what_is_kept_is_what_a_disk_keeps(served, tmp_path):
  config = config_of(11, keep_every=4, keep_checkpoints=1)
  for place in (tmp_path, "s3://runs/kept"):
    loop.train(build(config), place, progress=False)
    assert CheckpointStore(place).steps() == [4, 8, 11]
  assert {name.split("/")[1] for name in files("s3://runs/kept/checkpoints")} & {"2", "6", "10"} == set()


def damage(run: str, step: int) -> None:
  name = max(name for name in files(run) if name.startswith(f"checkpoints/{step}/state/d/"))
  content = whole.read(f"{run}/{name}")
  whole.write(f"{run}/{name}", content[: len(content) // 2])


def test_a_truncated_checkpoint_is_set_aside_and_half_a_copy_is_none(served, whole_run, capsys):
  run = "s3://runs/damaged"
  loop.train(build(config_of(11)), run, progress=False, stopped=lambda step: step == 8)
  assert CheckpointStore(run).steps() == [6, 8]
  damage(run, 8)
  bucket.filesystem(run).rm_file(f"{run}/checkpoints/8/extra/metadata")
  whole.write(f"{run}/checkpoints/10/state/half", "x")
  store = CheckpointStore(run)
  assert store.steps() == [6, 8] and store.is_cut_off()
  equal(whole_run[1], loop.train(build(config_of(11)), run, progress=False))
  said = capsys.readouterr().err
  assert f"{run}/checkpoints/8 is damaged, training goes on from 6" in said
  left = {name.split("/")[1] for name in files(run) if name.startswith("checkpoints/")}
  assert left == {"8.damaged", "10", "11"}
  with pytest.raises(UserError, match="a run with at least one complete checkpoint"):
    CheckpointStore("s3://runs/none").choose()


LIVES = """
import os, pathlib, random, signal, sys, time, urllib.request
import jax
from cm_jax.assembly import build
from cm_jax.training import loop
from tests.training.test_bucket_runs import config_of

folder, kills, address = pathlib.Path(sys.argv[1]), int(sys.argv[2]), os.environ["AWS_ENDPOINT_URL"]
jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
chance = random.Random(23)

def saved():
  listed = urllib.request.urlopen(f"{address}/runs?list-type=2&prefix=killed/checkpoints/").read().decode()
  steps = [key.split("/")[2] for key in listed.split("<Key>")[1:] if "sha256.json" in key.split("<")[0]]
  return max(map(int, steps), default=0)

def live(run, num_steps):
  process = os.fork()
  if not process:
    try:
      loop.train(build(config_of(num_steps)), run, progress=False)
    finally:
      os._exit(sys.exc_info()[0] is not None)
  return process

for _ in range(kills):
  there, process = saved(), live("s3://runs/killed", 10**6)
  while saved() < there + 4:
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    time.sleep(0.02)
  time.sleep(chance.uniform(0, 0.3))
  os.kill(process, signal.SIGKILL)
  os.waitpid(process, 0)
last = saved() + 3
for run in ("s3://runs/killed", folder / "whole"):
  assert os.waitpid(live(run, last), 0)[1] == 0
print(last)
"""


def test_kills_in_the_middle_of_copies_change_nothing(served, tmp_path):
  command = [sys.executable, "-c", LIVES, str(tmp_path), "2"]
  done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=400)
  assert done.returncode == 0, done.stderr[-3000:]
  last = int(done.stdout.splitlines()[-1])
  program = Program(build(config_of(last)))
  stores = [CheckpointStore(run) for run in ("s3://runs/killed", tmp_path / "whole")]
  equal(*(store.restore(last, program.shapes, program.shardings)[0] for store in stores))
  assert losses("s3://runs/killed") == losses(tmp_path / "whole")
  print(f"2 kills in {last} steps: the same to the last bit")


def test_a_store_that_is_away_is_waited_for_and_loses_nothing(served, whole_run, monkeypatch):
  def shut(seconds):
    served.is_open = False
    if seconds:
      threading.Timer(seconds, setattr, (served, "is_open", True)).start()

  run, away = "s3://runs/away", [(5, lambda step, state: step == 5 and shut(2.0))]
  equal(whole_run[1], loop.train(build(config_of(11)), run, away, False))
  assert losses(run) == losses(whole_run[0])
  monkeypatch.setattr(bucket, "PATIENCE", 0.5)
  try:
    with pytest.raises(UserError) as failed:
      loop.train(build(config_of(11)), "s3://runs/gone", [(5, lambda step, state: shut(0))], False)
  finally:
    served.is_open = True
  said = str(failed.value)
  # that of step 4 may be under way just then
  assert re.search("the last good checkpoint is s3://runs/gone/checkpoints/[24]$", said) and "\n" not in said
  # the lock could not be taken away; it is void once its process, this one, is gone
  whole.place("s3://runs/gone/.lock").unlink(missing_ok=True)
  equal(whole_run[1], loop.train(build(config_of(11)), "s3://runs/gone", progress=False))


def succeed(capsys, *arguments: str) -> str:
  status, said = cli.run(list(arguments)), capsys.readouterr()
  assert status == 0, said
  return said.out


def test_every_command_reads_and_writes_there_as_on_a_disk(served, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  there, here = "s3://runs/cli", str(tmp_path)
  config = write_config(tmp_path / "config.py", num_steps=4, num_samples=4)
  sample = ["sample", "--num=8", "--sigmas=80,2", "--batch_size=8"]
  for place in (there, here):
    succeed(capsys, "train", config, f"--workdir={place}/run", "--noprogress")
    succeed(capsys, "convert", f"--input={place}/run", f"--out={place}/weights")
    for name in ("x.npz", "x.zip", "x.png", "folder"):
      succeed(
        capsys, *sample, f"--model={place}/{'weights' if name == 'x.zip' else 'run'}", f"--out={place}/{name}"
      )
    measure = ["--features=digits", "--reference=digits:test", "--num=8", "--few"]
    succeed(capsys, "evaluate", f"--images={place}/x.npz", *measure, f"--out={place}/measured")
  for name in ("x.npz", "x.zip", "x.png", "folder/00000/img00000005.png", "weights/weights.safetensors"):
    assert whole.read(f"{there}/{name}") == whole.read(f"{here}/{name}"), name
  fids = [lines.read(f"{place}/measured/evaluations.jsonl")[0]["value"] for place in (there, here)]
  assert fids[0] == fids[1]
  left = [name for name in files(there) if ".part/" in name or name.endswith(".lock")]
  assert left == []

  edit = [
    "edit",
    "--task=inpaint",
    "--num=1",
    f"--input={there}/folder/00000/img00000002.png",
    "--sigmas=80,2",
  ]
  whole.write(f"{there}/mask.png", encode_png(np.full((8, 8, 1), 255, np.uint8)))
  succeed(capsys, *edit, f"--model={there}/weights", f"--mask={there}/mask.png", f"--out={there}/edited")
  assert "edited/grid.png" in files(there)

  begins = ["--config.data.conditional=False", f"--init={there}/run", "--noprogress", "--config.batch_size=8"]
  for source, kind in ((f"zip:{there}/x.zip", "zip"), (f"folder:{there}/folder", "folder")):
    data = f"--config.data.source={source}"
    succeed(capsys, "train", config, data, *begins, f"--workdir={there}/of_{kind}")
  copies = [path.suffix for path in (tmp_path / "cache" / "objects").iterdir() if path.suffix != ".lock"]
  assert sorted(copies) == ["", ".npz", ".zip"]
  # the images are the same ones, in the same order, whatever they lie in
  assert 0 < losses(f"{there}/of_zip")[-1] == losses(f"{there}/of_folder")[-1]
