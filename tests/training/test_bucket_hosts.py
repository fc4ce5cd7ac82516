"""Runs of several processes in an object store, each with a disk of its own, against moto's S3 server."""

import atexit
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import build
from cm_jax.cli.environment import JAX_CACHE
from cm_jax.data.sources import images, open_source
from cm_jax.storage import bucket, lines
from cm_jax.storage.pictures import encode_png
from cm_jax.storage.run import RunFolder
from cm_jax.training import copies, loop
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.step_folder import SEAL
from tests import needs, tiny
from tests.storage.moto_server import server
from tests.training.test_peers import peers_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("bucket")]
CONFIG = """
from tests.training.test_bucket_hosts import config_of

def get_config():
  return config_of(100_000)
"""
PHOTOS = "folder:s3://hosts/photos"


def config_of(num_steps: int, source: str = "digits:train"):
  config = tiny.config(tiny.EDM, num_steps=num_steps, checkpoint_every=1)
  config.mesh.rules, config.data.source = ((".", "fsdp_small"),), source
  return config


def live(arguments: list[str], disk: Path, patience: float, flips: bool) -> None:
  """Be a process of a job: run a command with a disk of its own, what it says in a file.

  Compiled programs are in common.

  Args:
    patience: Seconds that the store may be away.
    flips: A bit of the first checkpoint that is fetched is another one here.
  """
  programs = str(disk.parent / "programs")
  quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  os.environ.update(XLA_FLAGS=quick, TMPDIR=str(disk), CM_JAX_CACHE=f"{disk}/cache", **{JAX_CACHE: programs})
  jax.config.update("jax_compilation_cache_dir", programs)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  tempfile.tempdir, bucket.PATIENCE = None, patience
  if flips:
    flip_first()
  said = os.open(f"{disk}.said", os.O_WRONLY | os.O_CREAT)
  for stream in (1, 2):
    os.dup2(said, stream)
  sys.argv = ["cm_jax", *arguments]
  try:
    cli.main()
  finally:
    atexit._run_exitfuncs()


def flip_first() -> None:
  fetch = copies.Copies.fetch

  def fetch_and_flip(self, step, items):
    came = fetch(self, step, items)
    if "state" in items:
      copies.Copies.fetch = fetch
      file = max((self.here / str(step) / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
      content = bytearray(file.read_bytes())
      content[len(content) // 2] ^= 1
      file.write_bytes(content)
    return came

  copies.Copies.fetch = fetch_and_flip


class Host:
  """One of the processes of a job."""

  def __init__(self, context, disk: Path, *about):
    disk.mkdir()
    self.disk, self._process = disk, context.Process(target=live, args=about)
    self._process.start()

  def send(self, number: int) -> None:
    os.kill(self._process.pid, number)

  def ended(self) -> int:
    """Return its exit status."""
    self._process.join(120)
    assert not self.is_alive(), self.said()
    return self._process.exitcode

  def is_alive(self) -> bool:
    return self._process.exitcode is None

  def said(self) -> str:
    return Path(f"{self.disk}.said").read_text() if Path(f"{self.disk}.said").exists() else ""


@pytest.fixture
def job(tmp_path):
  """Train on several processes that have nothing but the bucket in common."""
  needs.buckets()
  server().make("hosts")
  context, hosts = multiprocessing.get_context("forkserver"), []
  context.set_forkserver_preload([__name__, "sklearn.datasets", "s3fs", "orbax.checkpoint"])
  (tmp_path / "config.py").write_text(CONFIG)

  def start(run: str, *more: str, patience: float = 60.0, flips: bool = False, count: int = 2) -> list[Host]:
    address = f"--coordinator=127.0.0.1:{peers_port()}"
    arguments = "train", f"--config={tmp_path / 'config.py'}", "--noprogress", "--config.mesh.fsdp=2", *more
    for number in range(count):
      disk = tmp_path / f"disk{len(hosts)}"
      command = [
        *arguments,
        f"--workdir={run}",
        address,
        f"--num_processes={count}",
        f"--process_id={number}",
      ]
      hosts.append(Host(context, disk, command, disk, patience, flips and number == 1))
    return hosts[-count:]

  yield start
  for host in hosts:
    if host.is_alive():
      host.send(signal.SIGKILL)


def alone(num_steps: int, run, source: str = "digits:train"):
  return loop.train(build(config_of(num_steps, source)), run, progress=False)


def losses(run) -> list[float]:
  return [row["loss"] for row in lines.read(RunFolder.at(run).metrics)]


def wait_for(look, hosts: list[Host]) -> None:
  while not look():
    assert all(host.is_alive() for host in hosts), [host.said() for host in hosts]
    time.sleep(0.1)


def is_copying(run: str) -> bool:
  """Whether a step after the first two is there in part."""
  files: dict[str, set[str]] = {}
  with contextlib.suppress(FileNotFoundError):
    for path in bucket.filesystem(run).find(f"{run}/checkpoints"):
      step, _, file = path.partition("/checkpoints/")[2].partition("/")
      files.setdefault(step, set()).add(file)
  return any(step.isdigit() and int(step) > 2 and SEAL not in files[step] for step in files)


def test_a_run_goes_through_all_that_may_happen_and_is_that_of_one_process(job, tmp_path):
  """Killed in the middle of a copy; on with one process; with two, one of which cannot read the newest, until
  a SIGTERM; with two, until the store goes away; from a copy on the disk with one."""
  run, here = "s3://hosts/run", tmp_path / "here"
  both = job(run)
  wait_for(lambda: is_copying(run), both)
  for host in both:
    host.send(signal.SIGKILL)
  assert [host.ended() for host in both] == [-9, -9]
  damaged = CheckpointStore(run).latest() + 2
  alone(damaged, run)

  both = job(run, flips=True)
  wait_for(lambda: CheckpointStore(run).latest() > damaged, both)
  both[1].send(signal.SIGTERM)
  assert [host.ended() for host in both] == [75, 75], [host.said() for host in both]
  there = CheckpointStore(run).latest()
  assert all(f"stopped at step {there}, saved; the same command" in host.said() for host in both)
  assert f"{run}/checkpoints/{damaged} is damaged, training goes on from {damaged - 1} " in both[0].said()
  assert all(list(host.disk.iterdir()) == [] for host in both)

  both = job(run, patience=0.5)
  wait_for(lambda: CheckpointStore(run).latest() > there, both)
  server().is_open, began = False, time.monotonic()
  try:
    assert [host.ended() for host in both] == [2, 1], [host.said() for host in both]
  finally:
    server().is_open = True
  taken, (first, second) = time.monotonic() - began, (host.said() for host in both)
  said = [line for line in first.splitlines() if line.startswith("cm_jax train: ")]
  assert len(said) == 1 and re.search(rf"; the last good checkpoint is {run}/checkpoints/\d+$", said[0]), (
    first
  )
  assert re.search(r"^cm_jax: process 0 \(\S+\) ended: .*; this process ends too$", second, re.MULTILINE), (
    second
  )
  assert "Traceback" not in first + second

  bucket.filesystem(run).get(f"{run}/", f"{here}/", recursive=True)
  (here / ".lock").unlink(missing_ok=True)  # could not be taken away
  there = CheckpointStore(run).latest()
  states = [alone(there + 1, place) for place in (here, tmp_path / "whole")]
  np.testing.assert_allclose(losses(here), losses(tmp_path / "whole"), rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *states)
  print(f"{there + 1} steps as of one process; both ended {taken:.0f} s after the store had gone")


def test_four_processes_fetch_their_own_data_and_stop_where_one_goes_on(job, tmp_path):
  """Images in a folder of the bucket; parameters shared by two and two; SIGTERM to the third of them."""
  run, here = "s3://hosts/four", tmp_path / "photos"
  here.mkdir()
  for number, image in enumerate(images(open_source("digits:test"))[:64]):
    (here / f"{number:02d}.png").write_bytes(encode_png(image))
  bucket.filesystem(run).put(f"{here}/", f"{PHOTOS.removeprefix('folder:')}/", recursive=True)
  began, four = time.monotonic(), job(run, f"--config.data.source={PHOTOS}", count=4)
  wait_for(lambda: (CheckpointStore(run).latest() or 0) > 1, four)
  four[2].send(signal.SIGTERM)
  assert [host.ended() for host in four] == [75] * 4, [host.said() for host in four]
  there = CheckpointStore(run).latest()
  assert all(f"stopped at step {there}, saved; the same command" in host.said() for host in four)
  assert [len(list(host.disk.glob("cache/objects/*-photos/*.png"))) for host in four] == [64] * 4
  states = [alone(there + 1, place, f"folder:{here}") for place in (run, tmp_path / "whole")]
  found, expected = (np.array(losses(place)) for place in (run, tmp_path / "whole"))
  assert len(found) == there + 1
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *states)
  difference = np.abs(found / expected - 1).max()
  print(
    f"4 processes, {there} steps, then 1 process: losses at most {difference:.1e} off one process; "
    f"all of it took {time.monotonic() - began:.0f} s"
  )
