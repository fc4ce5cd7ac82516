"""Object stores (`storage/bucket.py`): what cannot be reached is said in one line, soon; what can is written
whole, by one at a time. Against moto's S3 server; real S3 and GCS were not."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from cm_jax import cli
from cm_jax.errors import UserError
from cm_jax.storage import bounded, bucket, downloads, lines, lock, weights, whole
from tests import needs
from tests.storage.moto_server import server

REPO = Path(__file__).parents[2]


@pytest.fixture
def without_s3fs(monkeypatch):
  """A Python without s3fs."""
  monkeypatch.setitem(sys.modules, "s3fs", None)
  bucket._prepare.cache_clear()
  yield
  bucket._prepare.cache_clear()


@pytest.mark.parametrize(
  "flag", ["--workdir=s3://b/run", "--teacher=s3://b/t", "--config.data.source=zip:s3://b/x"]
)
def test_a_missing_extra_is_said_before_anything_else(flag, without_s3fs, capsys):
  assert cli.run(["train", "--config=configs/digits_edm.py", flag]) == 2
  said = capsys.readouterr().err
  name, _, value = flag.partition("=")
  assert said.startswith(f"cm_jax train: {name} = {value}: expected s3fs, which reaches s3://")
  assert 'pip install "cm_jax[s3]"' in said and said.count("\n") == 1


@pytest.mark.parametrize(
  "given", ["benchmark --trace=gs://b/x", "benchmark --trace gs://b/x", "train --config gs://b/x"]
)
def test_a_flag_that_knows_no_object_store_says_so(given, capsys):
  command, flag, _ = given.replace("=", " ").split()
  assert cli.run(given.split()) == 2
  said = capsys.readouterr().err
  assert said.startswith(f"cm_jax {command}: {flag} = gs://b/x: expected a path of this machine")
  assert said.count("\n") == 1


def test_the_cache_is_of_this_machine(monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", "gs://bucket/cache")
  with pytest.raises(
    UserError, match=r"^CM_JAX_CACHE = gs://bucket/cache: expected a folder of this machine"
  ):
    downloads.cache_folder()


@pytest.fixture(scope="module")
def served():
  needs.buckets()
  server().make("cm-jax")
  return server()


@pytest.fixture
def place(served, request):
  """A place of its own in a bucket."""
  return epath.Path(f"s3://cm-jax/{request.node.name.replace('[', '-').strip(']')}")


def ours(place) -> list[str]:
  store = bucket.filesystem(str(place))
  return sorted(name.removeprefix(str(place)[5:] + "/") for name in store.find(str(place)))


@pytest.mark.slow
def test_files_folders_lines_and_weights_come_back_as_they_were_written(place, tmp_path):
  whole.write(place / "a" / "text.txt", "über")
  assert whole.read(place / "a" / "text.txt").decode() == "über"
  lines.append(place / "m.jsonl", [{"step": 3}, {"step": 7}])
  lines.append(place / "m.jsonl", [{"step": 11}])
  assert [row["step"] for row in lines.read(place / "m.jsonl")] == [3, 7, 11]
  assert lines.drop_after(place / "m.jsonl", 7) == 0 and len(lines.read(place / "m.jsonl")) == 2
  weights.save_arrays(place / "w.safetensors", {"x": np.arange(5, dtype=np.float32)})
  assert weights.load_arrays(place / "w.safetensors", "w")["x"].tolist() == [0, 1, 2, 3, 4]
  with whole.folder(place / "f", last="last") as new:
    for name in ("z", "last", "a"):
      (new / name).write_text(name)
  assert ours(place) == ["a/text.txt", "f/a", "f/last", "f/z", "m.jsonl", "w.safetensors"]
  with pytest.raises(FileNotFoundError, match="none.txt"):
    whole.read(place / "none.txt")


@pytest.mark.slow
def test_of_many_who_make_an_object_at_once_one_does(place):
  made, together = [], threading.Barrier(8)

  def make(number):
    together.wait()
    made.append((number, bucket.create(f"{place}/one", str(number).encode())))

  threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
  [thread.start() for thread in threads]
  [thread.join() for thread in threads]
  (winner,) = [number for number, done in made if done]
  assert whole.read(place / "one") == str(winner).encode()


HOLDS = """
import sys, time
from cm_jax.storage import lock
with lock.held(sys.argv[1], "out", "x"):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.mark.slow
def test_the_second_writer_is_refused_and_a_dead_ones_lock_is_void(place):
  file = place / ".lock"
  first = subprocess.Popen(
    [sys.executable, "-c", HOLDS, str(file)], cwd=REPO, stdout=subprocess.PIPE, text=True
  )
  assert first.stdout.readline() == "held\n"
  with pytest.raises(UserError, match=rf"^workdir = w: expected .*process {first.pid} on .* does$"):
    lock.held(file, "workdir", "w").__enter__()
  first.kill()
  first.wait()
  taken, refused, together = [], [], threading.Barrier(6)

  def take():
    mine = lock.Lock(file, "workdir", "w")
    together.wait()
    try:
      mine.acquire()
      taken.append(mine)
    except UserError:
      refused.append(1)

  threads = [threading.Thread(target=take) for _ in range(6)]
  [thread.start() for thread in threads]
  [thread.join() for thread in threads]
  assert (len(taken), len(refused)) == (1, 5)
  taken[0].check()
  taken[0].release()
  assert ours(place) == []


def told(capsys, *arguments: str) -> tuple[int, str, float]:
  began = time.monotonic()
  status = cli.run(list(arguments))
  return status, capsys.readouterr().err, time.monotonic() - began


@pytest.mark.slow
def test_a_bucket_that_is_not_there_or_does_not_answer_is_one_line_in_seconds(served, capsys, monkeypatch):
  train = ("train", "--config=configs/digits_edm.py")
  status, said, seconds = told(capsys, *train, "--workdir=s3://nobody/x")
  assert status == 2 and seconds < 20 and said.count("\n") == 1
  assert said.startswith("cm_jax train: --workdir = s3://nobody/x: expected a bucket that exists")
  status, said, _ = told(capsys, "sample", "--model=s3://cm-jax/none", "--out=x.png")
  assert (
    status == 2 and said.count("\n") == 1 and said.startswith("cm_jax sample: --model = s3://cm-jax/none")
  )
  status, said, _ = told(capsys, "sample", "--model=s3://", "--out=x.png")
  assert status == 2 and "expected s3://BUCKET/NAME" in said


AWAY = """
import sys
from cm_jax import cli
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changed", "expected"),
  [
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "an object store that answers (Could not connect"),
    (
      {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_EC2_METADATA_DISABLED": "true"},
      "credentials for it: AWS_ACCESS_KEY_ID and",
    ),
  ],
)  # fmt: skip
def test_no_network_and_no_credentials_are_one_line_in_seconds(served, changed, expected):
  environment = {**os.environ, "PYTHONPATH": str(REPO)}
  for name, value in changed.items():
    environment.pop(name, None) if value is None else environment.__setitem__(name, value)
  command = [sys.executable, "-c", AWAY, "train", "--config=configs/digits_edm.py", "--workdir=s3://cm-jax/x"]
  began = time.monotonic()
  done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2 and time.monotonic() - began < 30
  assert done.stderr.startswith(f"cm_jax train: --workdir = s3://cm-jax/x: expected {expected}"), done.stderr
  assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_without_permission_the_field_is_named(served, monkeypatch):
  store = bucket.filesystem("s3://cm-jax/x")

  def forbidden(*_, **__):
    raise PermissionError("Access Denied")

  monkeypatch.setattr(store, "call_s3", forbidden)
  with pytest.raises(
    UserError, match=r"^--model = s3://cm-jax/x: expected a bucket that these credentials may .*Denied"
  ):
    bucket.check("--model", "s3://cm-jax/x")
  monkeypatch.undo()
  monkeypatch.setattr(store, "pipe_file", forbidden)
  with pytest.raises(UserError, match=r"^out = s3://cm-jax/x: expected a place that these cred"):
    whole.check_writable("out", "s3://cm-jax/x")


@pytest.mark.slow
def test_no_answer_is_waited_for_no_longer_than_the_deadline(monkeypatch):
  monkeypatch.setattr(bucket, "DEADLINE", 0.2)
  error = bucket._answer(lambda: time.sleep(5))
  assert str(error) == "no answer in 0 s"


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for_and_then_given_up(served, place, monkeypatch):
  whole.write(place / "before", "1")
  served.is_open = False
  threading.Timer(2.5, setattr, (served, "is_open", True)).start()
  began = time.monotonic()
  whole.write(place / "after", "2")
  assert time.monotonic() - began > 2
  assert (whole.read(place / "before"), whole.read(place / "after")) == (b"1", b"2")
  served.is_open = False
  monkeypatch.setattr(bucket, "PATIENCE", 1.0)
  try:
    with pytest.raises(UserError, match=rf"^{place}/late = .*: expected a place that can be written"):
      whole.write(place / "late", "3")
    with pytest.raises(UserError, match=rf"^{place}/m.json = unreadable: .*: expected an object"):
      bounded.read_object(place / "m.json", "an object")
  finally:
    served.is_open = True
