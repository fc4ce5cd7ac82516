"""Training that is stopped, that finds another training, or a full disk: what is kept, what is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.errors import UserError
from cm_jax.storage import lock
from cm_jax.storage.run import RunFolder, check_entries
from cm_jax.training import board, loop
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.metrics import MetricsLog
from cm_jax.training.program import Program
from tests import tiny
from tests.storage.places import disk_of, names, no_room
from tests.training.test_train import equal, losses, run_cli, write_config

REPO = Path(__file__).parents[2]


def test_a_run_that_is_stopped_is_saved_there_and_goes_on_exactly(tmp_path):
  config = tiny.config(num_steps=7, checkpoint_every=1000)
  whole = loop.train(build(config), tmp_path / "whole", progress=False)
  drawn, parts = [], tmp_path / "parts"
  hooks = [(2, lambda step, state: drawn.append(step))]
  for stop in (2, 5):
    state = loop.train(build(config), parts, hooks, False, stopped=lambda step, stop=stop: step == stop)
    assert int(state.step) == stop
    assert (
      names(parts / "checkpoints")[0].startswith(f"{stop}/") or (parts / "checkpoints" / str(stop)).is_dir()
    )
  equal(whole, loop.train(build(config), parts, hooks, False))
  assert drawn == [2, 4, 6, 7]  # not where it was stopped
  assert losses(parts) == losses(tmp_path / "whole")
  assert not (parts / ".lock").exists()


def test_a_second_training_is_refused_and_changes_nothing(tmp_path):
  experiment = build(tiny.config(num_steps=1))
  with lock.held(RunFolder.at(tmp_path).lock, "workdir", "x"):
    with pytest.raises(UserError, match=rf"^workdir = {tmp_path}: .*process {os.getpid()} on"):
      loop.train(experiment, tmp_path, progress=False)
    assert names(tmp_path) == [".lock"]


def test_a_run_that_loses_its_folder_stops_and_says_which_checkpoint_is_good(tmp_path):
  def taken_over(step, state):
    (tmp_path / "run" / ".lock").write_text("{}")

  config = tiny.config(num_steps=6, checkpoint_every=2)
  with pytest.raises(UserError, match=r"another took over.*; there is no checkpoint yet"):
    loop.train(build(config), tmp_path / "run", [(2, taken_over)], progress=False)


def test_a_full_disk_names_the_place_and_the_last_good_checkpoint(tmp_path, monkeypatch):
  config = tiny.config(num_steps=4, checkpoint_every=2)
  loop.train(build(config), tmp_path, progress=False, stopped=lambda step: step == 2)
  monkeypatch.setattr(loop.MetricsLog, "write", no_room)
  with pytest.raises(UserError) as failed:
    loop.train(build(config), tmp_path, progress=False)
  said = str(failed.value)
  assert said.startswith(f"{tmp_path} = No space left on device: expected a place that can be written")
  assert said.endswith(f"the last good checkpoint is {tmp_path / 'checkpoints' / '2'}")


def test_a_save_that_fails_is_one_error_and_leaves_the_one_before(tmp_path, capfd):
  program = Program(build(tiny.config()))
  state = program.create()
  store = CheckpointStore(tmp_path)
  extra = {"fingerprint": "f", "seconds": 1.0, "config_sha256": "c", "config": {}}
  store.save(state, extra)
  store.wait()
  with disk_of(300), pytest.raises(UserError) as failed:
    store.save(state.replace(step=state.step + 9), extra)
    store.wait()
  assert str(failed.value).startswith(
    f"checkpoint = {tmp_path / 'checkpoints' / '9'}: expected a place that can"
  )
  assert str(failed.value).endswith("with room enough (File too large)")
  assert store.steps() == [0] and not list(tmp_path.rglob("*tmp*"))
  equal(store.restore(0, program.shapes, program.shardings)[0], state)
  store.close()
  assert capfd.readouterr().err == ""


def test_tensorboard_gets_records_as_its_own_writer_writes_them(tmp_path):
  from tensorboardX.proto.event_pb2 import Event
  from tensorboardX.record_writer import RecordWriter

  written = board.Board(RunFolder.at(tmp_path).tensorboard)
  written.write(30, {"loss": 0.25, "gap": None})
  written.write(40, {"loss": 0.125})
  (path,) = (tmp_path / "tensorboard").iterdir()
  content, events, at = path.read_bytes(), [], 0
  again = RecordWriter(str(tmp_path / "again"))
  while at < len(content):
    size = int.from_bytes(content[at : at + 8], "little")
    events.append(Event.FromString(content[at + 12 : at + 12 + size]))
    again.write(content[at + 12 : at + 12 + size])
    at += size + 16
  again.close()
  assert (tmp_path / "again").read_bytes() == content
  assert events[0].file_version == "brain.Event:2" and events[1].session_log.status == 1
  shown = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
  assert shown == [(30, "loss", 0.25), (40, "loss", 0.125)]


def test_tensorboard_without_room_is_left_out_with_one_line(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(board, "open", no_room, raising=False)
  log = MetricsLog(tmp_path, 0, 9, 8, progress=False)
  for step in (1, 2, 3):
    log.add({"loss": np.float32(step), "bin_count": np.zeros(1)})
    log.write(step, 1.0)
  log.close()
  assert losses(tmp_path) == [1.0, 2.0, 3.0]
  said = capsys.readouterr().err.splitlines()
  assert (
    len(said) == 1
    and said[0].startswith(f"cm_jax: {tmp_path}/tensorboard: ")
    and "goes on without" in said[0]
  )


@pytest.mark.parametrize(
  ("name", "is_folder"),
  [("snapshots", False), ("samples", False), ("config.json", True), ("diagnostics.jsonl", True)],
)
def test_an_entry_of_the_wrong_kind_is_named(tmp_path, name, is_folder):
  check_entries(tmp_path / "new")
  check_entries(tmp_path)
  (tmp_path / name).mkdir() if is_folder else (tmp_path / name).write_text("x")
  given, wanted = ("a folder", "a file") if is_folder else ("a file", "a folder")
  with pytest.raises(UserError, match=f"^{tmp_path / name} = {given}: expected {wanted}, or nothing"):
    check_entries(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, sent, status):
  config = write_config(tmp_path / "config.py", num_steps=100_000, checkpoint_every=100_000, log_every=10)
  run = tmp_path / "run"
  process = run_cli("train", config, "--noprogress", f"--workdir={run}")
  while not (run / "metrics.jsonl").exists() or len(losses(run)) < 5:
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.05)
  process.send_signal(getattr(signal, sent))
  assert process.wait(60) == status
  step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
  said = process.stdout.read().splitlines()[-1]
  assert said == f"cm_jax train: stopped at step {step}, saved; the same command goes on"
  assert CheckpointStore(run).latest() == step
  last = run_cli("train", f"--workdir={run}", f"--config.run.num_steps={step + 5}", "--noprogress")
  assert last.wait(120) == 0, last.stdout.read()


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path):
  script = tmp_path / "stuck.py"
  script.write_text(
    "import time\n"
    "from cm_jax.cli import signals\n"
    "with signals.handled(), signals.at_a_boundary() as boundary:\n"
    "  boundary.begin()\n"
    "  print('begun', flush=True)\n"
    "  time.sleep(60)\n"
  )
  environment = {**os.environ, "PYTHONPATH": str(REPO)}
  process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE)
  process.stdout.readline()
  for _ in range(2):
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
  assert process.wait(5) == 130


@pytest.mark.slow
def test_of_two_processes_one_is_told_and_both_save_the_same_step(tmp_path):
  config = write_config(tmp_path / "config.py", num_steps=100_000, checkpoint_every=100_000, log_every=10)
  run, job = tmp_path / "run", {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:29523", "JAX_NUM_PROCESSES": "2"}
  arguments = ("train", config, "--noprogress", f"--workdir={run}")
  two = [run_cli(*arguments, JAX_PROCESS_ID=str(number), **job) for number in range(2)]
  while not (run / "metrics.jsonl").exists() or len(losses(run)) < 5:
    assert all(process.poll() is None for process in two), [process.stdout.read() for process in two]
    time.sleep(0.05)
  two[1].terminate()
  assert [process.wait(60) for process in two] == [75, 75]
  step = CheckpointStore(run).latest()
  for process in two:
    assert f"stopped at step {step}, saved; the same command goes on" in process.stdout.read()
