"""Processes that decode (`data/workers.py`) leave signals to the run, and end with it however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
RUNS = """
import os, sys
from cm_jax.data.pipeline import FromSource, Pipeline, stream
from cm_jax.data.sources import open_source

if __name__ == "__main__":
  os.setpgrp()
  batches = stream(Pipeline(FromSource(open_source("digits")), 8, 0), 0, 10_000, 2)
  for number, _ in enumerate(batches):
    if number in (3, 60):
      print("batch", flush=True)
      sys.stdin.readline()
"""


def children(pid: int) -> list[int]:
  found = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
  return sorted(map(int, found.split()))


def alive(pid: int) -> bool:
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
  except OSError:
    return False


@pytest.mark.slow
def test_workers_go_on_through_signals_and_end_with_a_killed_run(tmp_path):
  (tmp_path / "runs.py").write_text(RUNS)
  environment = {**os.environ, "PYTHONPATH": str(REPO)}
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  process = subprocess.Popen([sys.executable, tmp_path / "runs.py"], env=environment, text=True, **pipes)
  assert process.stdout.readline() == "batch\n"
  started = children(process.pid)
  assert len(started) >= 2
  for pid in started:  # as Ctrl-C and scancel do, to all of a group
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      os.kill(pid, number)
  process.stdin.write("go on\n")
  process.stdin.flush()
  assert process.stdout.readline() == "batch\n"  # by the same workers: 57 batches are not prepared ahead
  assert children(process.pid) == started
  process.kill()
  process.wait()
  until = time.monotonic() + 20
  while any(map(alive, started)) and time.monotonic() < until:
    time.sleep(0.1)
  assert not any(map(alive, started))
