"""One writer at a time (`storage/lock.py`): who is refused, whose lock is void, what is left."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cm_jax.errors import UserError
from cm_jax.storage import lock
from cm_jax.storage.holder import Holder, started
from tests.storage.places import names

REPO = Path(__file__).parents[2]
HOLDS = """
import sys, time
from cm_jax.storage import lock
with lock.held(sys.argv[1], "out", "x"):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(lock, "REFRESH", 0.05)
  monkeypatch.setattr(lock, "SETTLED", 0.0)


def left_by(path, age=0.0, **fields) -> None:
  """Write the lock of a process elsewhere, last refreshed so long ago."""
  holder = dataclasses.replace(Holder.this(), host="node7", machine="another", token="theirs", **fields)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(json.dumps({**dataclasses.asdict(holder), "at": time.time() - age}).encode())
  if not str(path).startswith("memory:"):
    os.utime(path, (time.time() - age,) * 2)


def take(path) -> None:
  with lock.held(path, "out", "x.zip"):
    pass


def test_the_second_is_refused_and_told_who_holds_it(place):
  with lock.held(place / ".lock", "workdir", "runs/a"):
    with pytest.raises(UserError, match=rf"^workdir = runs/a: expected .*process {os.getpid()} on .* does$"):
      take_as = lock.held(place / ".lock", "workdir", "runs/a")
      take_as.__enter__()
    assert names(place) == [".lock"]
  assert names(place) == []
  take(place / ".lock")


def test_folders_made_for_it_go_with_it_unless_something_came_into_them(tmp_path):
  take(tmp_path / "a" / "b" / ".lock")
  assert not (tmp_path / "a").exists()
  with lock.held(tmp_path / "a" / "b" / ".lock", "out", "x"):
    (tmp_path / "a" / "file").write_text("x")
  assert names(tmp_path) == ["a/file"] and not (tmp_path / "a" / "b").exists()


def test_another_machine_is_believed_for_a_minute(place):
  left_by(place / ".lock", age=40)
  with pytest.raises(UserError, match=r"^out = x.zip: .*on node7, since .*try again in (19|20) s\)$"):
    take(place / ".lock")
  left_by(place / ".lock", age=61)
  take(place / ".lock")
  assert names(place) == []


def test_a_job_takes_over_its_own(place, monkeypatch):
  monkeypatch.setenv("PBS_JOBID", "17.host")
  mine, other = "PBS_JOBID 17.host", "PBS_JOBID 18.host"
  left_by(place / ".lock", job=other)
  with pytest.raises(UserError, match="node7"):
    take(place / ".lock")
  left_by(place / ".lock", job=mine)  # silent: of the start before
  take(place / ".lock")
  monkeypatch.setattr(lock, "REFRESH", 1e3)  # at once, where the scheduler counts its starts
  monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
  left_by(place / ".lock", job=mine, restart=1)
  take(place / ".lock")


def test_a_job_that_started_twice_does_not_take_over_what_is_alive(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "REFRESH", 0.5)
  monkeypatch.setenv("SLURM_JOB_ID", "5")
  path = tmp_path / ".lock"
  left_by(path, job="SLURM_JOB_ID 5")
  alive = threading.Timer(0.2, lambda: os.utime(path))
  alive.start()
  with pytest.raises(UserError, match="node7"):
    take(path)
  alive.join()


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path):
  path = tmp_path / ".lock"
  command = [sys.executable, "-c", HOLDS, str(path)]
  process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE)
  assert process.stdout.readline() == b"held\n"
  with pytest.raises(UserError, match=f"process {process.pid} on"):
    take(path)
  process.kill()
  assert not started(process.pid) or process.wait()
  take(path)
  assert names(tmp_path) == []
  process.wait()


def test_a_number_used_again_is_another_process(tmp_path):
  path = tmp_path / ".lock"
  path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(Holder.this(), started="1"))))
  take(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"pid": "x"}', b'{"colour": 1}'])
def test_a_damaged_lock_counts_by_its_age(tmp_path, content):
  path = tmp_path / ".lock"
  path.write_bytes(content)
  with pytest.raises(UserError, match="does not say who"):
    take(path)
  os.utime(path, (time.time() - 100,) * 2)
  take(path)


def test_it_is_refreshed_and_its_loss_is_found(place):
  path = place / ".lock"
  with lock.held(path, "workdir", "runs/a") as held:
    held.check()
    before = path.read_text() if str(path).startswith("memory:") else os.stat(path).st_mtime
    time.sleep(0.3)
    after = path.read_text() if str(path).startswith("memory:") else os.stat(path).st_mtime
    assert after != before
    left_by(path)
    with pytest.raises(UserError, match="^workdir = runs/a: expected .lock in it as this process wrote it"):
      held.check()
  assert Holder.read(path).token == "theirs"  # it is not ours to remove


def test_of_many_that_find_a_void_lock_one_takes_it(tmp_path):
  path, taken, refused = tmp_path / ".lock", [], []
  left_by(path, age=99)
  gate = threading.Barrier(8)

  def contend() -> None:
    contender = lock.Lock(path, "out", "x")
    gate.wait()
    try:
      contender.acquire()
      taken.append(contender)
    except UserError:
      refused.append(contender)

  threads = [threading.Thread(target=contend) for _ in range(8)]
  [thread.start() for thread in threads]
  [thread.join() for thread in threads]
  assert len(taken) == 1 and len(refused) == 7
  taken[0].check()
  taken[0].release()
  assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["file/.lock", ".lock/.lock"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, where):
  (tmp_path / where.split("/")[0]).write_text("x")
  with pytest.raises(UserError, match="^out = x.zip: expected a place that can be written"):
    take(tmp_path / where)


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(lock.os, "fdopen", full)
  with pytest.raises(UserError, match=r"\(No space left on device\)$"):
    take(tmp_path / "new" / ".lock")
  assert not (tmp_path / "new").exists()
