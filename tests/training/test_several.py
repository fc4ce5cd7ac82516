"""Two processes: with a teacher and a start of ours, interrupted, and without the first one."""

import socket
import time

import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.training import loop, peers
from cm_jax.training.checkpoint import CheckpointStore
from tests import tiny
from tests.training.test_peers import peers_port
from tests.training.test_train import losses, run_cli, write_config


def two(*arguments: str):
  job = (f"--coordinator=127.0.0.1:{peers_port()}", "--num_processes=2")
  return [run_cli(*arguments, *job, f"--process_id={number}") for number in range(2)]


def said_by(processes) -> list[str]:
  return [process.communicate(timeout=180)[0] for process in processes]


def trains(run, processes, since: int = 0) -> None:
  """Wait until a run has some more lines."""
  while not (run / "metrics.jsonl").exists() or len(losses(run)) < since + 3:
    assert all(process.poll() is None for process in processes), said_by(processes)
    time.sleep(0.05)


@pytest.mark.slow
def test_a_teacher_and_a_start_of_ours_are_taken_and_the_student_is_sampled(tmp_path):
  teacher = tmp_path / "teacher"
  loop.train(build(tiny.config(num_steps=3)), teacher, progress=False)
  (tmp_path / "config.py").write_text(
    "from tests import tiny\n\ndef get_config():\n"
    "  c = tiny.config(tiny.CD, num_steps=5, diagnose_every=5)\n"
    "  c.network = {'name': 'teacher'}\n  return c\n"
  )
  command = ["train", f"--config={tmp_path / 'config.py'}", f"--teacher={teacher}", f"--init={teacher}"]
  alone = [run_cli(*command, "--noprogress", f"--workdir={tmp_path / 'one'}")]
  both = two(*command, "--noprogress", f"--workdir={tmp_path / 'two'}")
  said = said_by([*alone, *both])
  assert [process.returncode for process in (*alone, *both)] == [0, 0, 0], said
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
  sample = ("sample", f"--workdir={tmp_path / 'two'}", "--num=7", "--batch_size=4", "--sigmas=80")
  alone, both = (
    [run_cli(*sample, f"--out={tmp_path / 'one.npz'}")],
    two(*sample, f"--out={tmp_path / 'two.npz'}"),
  )
  said = said_by([*alone, *both])
  assert [process.returncode for process in (*alone, *both)] == [0, 0, 0], said
  first, second = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("one", "two"))
  assert first.shape == (7, 8, 8, 1)
  np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_an_interrupt_of_one_stops_both_and_the_death_of_the_first_ends_the_other(tmp_path):
  config = write_config(tmp_path / "config.py", num_steps=100_000, checkpoint_every=100_000, log_every=10)
  run = tmp_path / "run"
  both = two("train", config, "--noprogress", f"--workdir={run}")
  trains(run, both)
  both[1].send_signal(2)
  said = said_by(both)
  assert [process.returncode for process in both] == [75, 130], said
  step = CheckpointStore(run).latest()
  assert all(f"stopped at step {step}, saved; the same command goes on" in text for text in said), said

  both = two("train", config, "--noprogress", f"--workdir={run}")
  trains(run, both, since=len(losses(run)))
  both[0].kill()
  killed = time.monotonic()
  said = both[1].communicate(timeout=120)[0]
  taken = time.monotonic() - killed
  assert both[1].returncode == peers.STATUS, said
  host = socket.gethostname()
  expected = (
    f"cm_jax: process 0 ({host}), which the others meet at, is gone; this process ends too, the same "
  )
  assert said.splitlines()[-1] == f"{expected}command goes on"
  assert "Traceback" not in said and "coordination" not in said, said
  print(f"the other ended {taken:.1f} s after the first was killed, in one line")
