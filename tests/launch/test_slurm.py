"""launch/slurm.sbatch on a real Slurm of one node: two tasks train, are stopped, queued again, and go on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cm_jax.assembly import load_model
from tests import needs
from tests.launch.fake import LAUNCH, REPO

pytestmark = [pytest.mark.slow, needs.slurm]
STEPS = 1500  # longer than a signal takes to come through
CONFIG = f"""
from tests import tiny

def get_config():
  config = tiny.config(num_steps=0, log_every=5, checkpoint_every=1000)
  config.num_images = {STEPS} * config.batch_size
  return config
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """Return the environment in which sbatch and the like speak to a Slurm of our own."""
  folder = tmp_path_factory.mktemp("slurm")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  try:
    subprocess.run(["sh", str(Path(__file__).parent / "slurm" / "start.sh"), folder, str(port)], check=True)
    yield {
      **os.environ,
      "SLURM_CONF": str(folder / "slurm.conf"),
      "PYTHON": sys.executable,
      "PYTHONPATH": str(REPO),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "",
    }
  finally:
    for name in ("d.pid", "ctld.pid", "munged.pid"):
      if (folder / name).exists():
        os.kill(int((folder / name).read_text()), signal.SIGTERM)


def says(environment: dict[str, str], *command: str) -> str:
  return subprocess.run(
    command, env=environment, capture_output=True, text=True, check=True, timeout=60
  ).stdout.strip()


def state(environment: dict[str, str], job: str) -> str:
  """Return a job's state; "" once Slurm has forgotten it."""
  told = subprocess.run(
    ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True, timeout=60
  ).stdout
  return next((word.partition("=")[2] for word in told.split() if word.startswith("JobState=")), "")


def wait_until(true, seconds: float = 240) -> None:
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end
    time.sleep(0.5)


def logged(run: Path) -> int:
  file = run / "metrics.jsonl"
  return file.read_text().count('"loss"') if file.exists() else 0


def test_a_stopped_job_is_queued_again_and_ends_where_an_undisturbed_one_does(slurm, tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  submit = lambda name: says(
    slurm, "sbatch", "--parsable", f"--output={tmp_path / name}.out", "--ntasks-per-node=2",
    str(LAUNCH / "slurm.sbatch"), "train", f"--config={tmp_path / 'config.py'}",
    f"--workdir={tmp_path / name}", "--noprogress",
  )  # fmt: skip
  says(slurm, "sbatch", "--test-only", "--ntasks-per-node=2", str(LAUNCH / "slurm.sbatch"), "train")
  stopped = submit("stopped")
  wait_until(lambda: logged(tmp_path / "stopped") >= 3)
  says(slurm, "scancel", "--signal=TERM", stopped)
  wait_until(lambda: "saved; the same command goes on" in (tmp_path / "stopped.out").read_text())
  saved = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
  assert saved != [str(STEPS)]
  wait_until(lambda: state(slurm, stopped) in ("COMPLETED", "FAILED", "CANCELLED"))
  whole = submit("whole")
  wait_until(lambda: state(slurm, whole) in ("COMPLETED", "FAILED", "CANCELLED"))
  said = (tmp_path / "stopped.out").read_text()
  assert state(slurm, stopped) == state(slurm, whole) == "COMPLETED", said
  assert "on 2 hosts" in said and f"trained to step {STEPS}" in said
  found = [load_model(tmp_path / name, average="params").params for name in ("stopped", "whole")]
  jax.tree.map(np.testing.assert_array_equal, *found)
  print(f"2 tasks, stopped at step {max(saved, key=int)} of {STEPS}, queued again: the same to the last bit")
