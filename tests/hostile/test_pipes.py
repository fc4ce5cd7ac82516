"""What is no file where a file should be: told in one line, soon. A pipe waits when it is opened, a
device is read for ever."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation import comparison, records, rows
from cm_jax.storage import lines, run
from cm_jax.storage.lock import Lock
from cm_jax.storage.sealed import opened
from cm_jax.training import step_folder
from tests.data.test_sources import PIXELS, write_tfds
from tests.hostile.test_fuzz import READERS
from tests.hostile.test_fuzz import opened as source_opened

SECONDS = 10


def a_socket(path: Path) -> None:
  here = os.getcwd()
  os.chdir(path.parent)  # the names of sockets are short
  try:
    with socket.socket(socket.AF_UNIX) as made:
      made.bind(path.name)
  finally:
    os.chdir(here)


def a_link_to_a_pipe(path: Path) -> None:
  if not os.path.exists(f"{path}.pipe"):
    os.mkfifo(f"{path}.pipe")
  path.symlink_to(f"{path.name}.pipe")


KINDS: dict[str, Callable[[Path], None]] = {
  "pipe": lambda path: os.mkfifo(path),
  "link to a pipe": a_link_to_a_pipe,
  "device": lambda path: path.symlink_to("/dev/zero"),
  "socket": a_socket,
}


class Hangs(AssertionError):
  """Not to be taken for an error of a reader's."""


@pytest.fixture(autouse=True)
def in_time():
  def late(*_):
    raise Hangs(f"more than {SECONDS} s")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(SECONDS)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


def refused(read: Callable[[], object], *others: type[Exception]) -> None:
  with pytest.raises((UserError, *others)) as caught:
    read()
  assert str(caught.value).isprintable() and not isinstance(caught.value, Hangs)


@pytest.mark.parametrize("name", READERS)
def test_no_reader_opens_it(name, tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  make, read = READERS[name]
  file = make(tmp_path)
  for place in KINDS.values():
    file.unlink()
    place(file)
    refused(lambda: read(file))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_run_folder_is_opened_to_be_written(kind, tmp_path):
  for name in ("config.json", "metrics.jsonl", "evaluations.jsonl", "sigmas.json", "diagnostics.jsonl"):
    KINDS[kind](tmp_path / name)
    refused(lambda: run.check_entries(tmp_path))
    if name.endswith(".jsonl"):
      refused(lambda name=name: lines.append(tmp_path / name, [{"step": 1}]))
      refused(lambda name=name: lines.read(tmp_path / name))
    (tmp_path / name).unlink()
  for name, read in (("saved.json", run.last_saved), ("sigmas.json", run.read_sigmas)):
    KINDS[kind](tmp_path / name)
    refused(lambda read=read: read(tmp_path))
  KINDS[kind](tmp_path / ".lock")
  refused(Lock(tmp_path / ".lock", "workdir", str(tmp_path)).acquire)
  KINDS[kind](tmp_path / "shard_000000000")
  refused(lambda: opened(tmp_path / "shard_000000000"), OSError)


@pytest.mark.parametrize("there", [True, False])
def test_records_are_not_written_through_a_link_out_of_the_folder(there, tmp_path):
  """A run that somebody gives away may hold evaluations.jsonl -> ~/.bashrc."""
  (tmp_path / "run").mkdir()
  mine = tmp_path / "mine"
  if there:
    mine.write_text("alias ls=ls")  # without an end of line, which append takes for cut off
  (tmp_path / "run" / "evaluations.jsonl").symlink_to("../mine")
  with pytest.raises(UserError, match=f"a link to {mine}: expected a file of that folder"):
    lines.append(tmp_path / "run" / "evaluations.jsonl", [{"step": 1}])
  assert (mine.read_text() == "alias ls=ls") if there else not mine.exists()
  (tmp_path / "elsewhere").symlink_to(tmp_path / "run")  # the folder itself may be one
  lines.append(tmp_path / "elsewhere" / "metrics.jsonl", [{"step": 1}])
  assert lines.read(tmp_path / "run" / "metrics.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_many_runs(kind, tmp_path):
  KINDS[kind](tmp_path / "order.txt")
  refused(lambda: comparison.compare(tmp_path))
  KINDS[kind](tmp_path / "README.md")
  refused(lambda: rows.write_rows(tmp_path / "README.md", tmp_path))
  KINDS[kind](tmp_path / "rows.jsonl")
  refused(lambda: records.read(tmp_path / "rows.jsonl"))


def test_a_set_of_tfds(tmp_path):
  spec = write_tfds(tmp_path / "set", PIXELS[3])
  file = next((tmp_path / "set" / "own" / "1.0.0").glob("*.array_record*"))
  for place in KINDS.values():
    file.unlink()
    place(file)
    refused(lambda: source_opened(spec))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "name", ["state/manifest.ocdbt", "state/d/abc", "_CHECKPOINT_METADATA", "sha256.json"]
)
def test_a_step_of_a_checkpoint(kind, name, tmp_path):
  """Also where no seal says what is there; files that are links are followed."""
  place = tmp_path / "step" / name
  place.parent.mkdir(parents=True)
  (tmp_path / "elsewhere").write_bytes(b"x")
  place.symlink_to(tmp_path / "elsewhere")
  assert step_folder.irregular(tmp_path / "step") is None
  place.unlink()
  KINDS[kind](place)
  assert step_folder.irregular(tmp_path / "step").startswith(name)
  assert "no regular file" in step_folder.damage(tmp_path / "step", ["state"])


def test_a_step_with_a_link_to_a_folder_elsewhere(tmp_path):
  (tmp_path / "step").mkdir()
  (tmp_path / "step" / "state").symlink_to("/")
  assert step_folder.irregular(tmp_path / "step") == "state"
  (tmp_path / "linked").symlink_to(tmp_path / "step")  # a step itself may lie on another disk
  assert step_folder.irregular(tmp_path / "linked") == "state"


SCRIPT = """
import shutil
from pathlib import Path

from cm_jax.assembly import build, load_model
from cm_jax.errors import UserError
from cm_jax.training import loop
from tests import tiny
from tests.hostile.test_pipes import KINDS

here = Path({here!r})
config = tiny.config(num_steps=2, checkpoint_every=1)
loop.train(build(config), here / "run", progress=False)
files = [file for file in sorted((here / "run" / "checkpoints").rglob("*")) if not file.is_dir()]
files = files[::3]
for number, file in enumerate(files):
  shutil.copytree(here / "run", here / "now")
  trap = here / "now" / file.relative_to(here / "run")
  trap.unlink()
  list(KINDS.values())[number % len(KINDS)](trap)
  for read in (lambda: load_model(here / "now"), lambda: load_model(here / "now", step=1),
               lambda: loop.train(build(config), here / "now", progress=False)):
    try:
      read()
    except UserError as error:
      assert "regular file" in str(error), error
      print("refused", flush=True)
  shutil.rmtree(here / "now")
print("all", len(files))
"""


@pytest.mark.slow
def test_every_file_of_a_checkpoint(tmp_path):
  """In a process of its own: what waits in Orbax's threads, no signal wakes."""
  signal.alarm(0)
  script = textwrap.dedent(SCRIPT.format(here=str(tmp_path)))
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2]
  )
  assert done.returncode == 0, done.stderr[-2000:]
  *told, last = done.stdout.splitlines()[-3 * int(done.stdout.split()[-1]) - 1 :]
  assert last.startswith("all ") and told.count("refused") > 2 * int(last.split()[1])
