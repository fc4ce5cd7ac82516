"""Two processes: with a teacher and a start of ours, interrupted, and without the first one."""

import json
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.cli.config_flags import read_file
from cm_jax.data.sources import images, labels, open_source
from cm_jax.evaluation.features.classifier import save_features, train_features
from cm_jax.training import loop, peers
from cm_jax.training.checkpoint import CheckpointStore
from tests import tiny
from tests.training.test_peers import peers_port
from tests.training.test_train import losses, run_cli, write_config


def several(count: int, *arguments: str, **variables: str):
  job = (f"--coordinator=127.0.0.1:{peers_port()}", f"--num_processes={count}")
  return [run_cli(*arguments, *job, f"--process_id={number}", **variables) for number in range(count)]


def two(*arguments: str, **variables: str):
  return several(2, *arguments, **variables)


def said_by(processes) -> list[str]:
  return [process.communicate(timeout=300)[0] for process in processes]


def distances(path) -> list[float]:
  """Return what was measured of samples, and not of the machine."""
  records = [json.loads(line) for line in path.read_text().splitlines()]
  return [record["value"] for record in records if "second" not in record["metric"]]


def numbers(path) -> list[dict[str, float]]:
  """Return the numbers of each line, flat, by name: all that are no times."""
  timed = ("seconds", "share_", "per_second", "memory")

  def flat(name, value):
    if isinstance(value, dict):
      return {key: leaf for inner in value for key, leaf in flat(f"{name}/{inner}", value[inner]).items()}
    is_number = isinstance(value, (int, float)) and not any(part in name for part in timed)
    return {name.strip("/"): float(value)} if is_number else {}

  return [flat("", json.loads(line)) for line in path.read_text().splitlines()]


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
    "  c = tiny.config(tiny.CD, num_steps=5, diagnose_every=3)\n"
    "  c.run.update(sample_every=3, num_samples=5)\n  c.run.evaluate.update(every=3, num=50)\n"
    "  c.network = {'name': 'teacher'}\n  return c\n"
  )
  command = ["train", f"--config={tmp_path / 'config.py'}", f"--teacher={teacher}", f"--init={teacher}"]
  cache = {"CM_JAX_CACHE": str(tmp_path / "cache")}  # empty: one of the three trains what measures
  alone = [run_cli(*command, "--noprogress", f"--workdir={tmp_path / 'one'}", **cache)]
  both = two(*command, "--noprogress", f"--workdir={tmp_path / 'two'}", **cache)
  said = said_by([*alone, *both])
  assert [process.returncode for process in (*alone, *both)] == [0, 0, 0], said
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
  for file in ("metrics.jsonl", "diagnostics.jsonl"):
    for ours, theirs in zip(numbers(tmp_path / "two" / file), numbers(tmp_path / "one" / file), strict=True):
      assert ours.keys() == theirs.keys()
      assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-3), (ours, theirs)
  pictures = lambda run: sorted(path.name for path in run.glob("**/*.png"))
  assert pictures(tmp_path / "two") == pictures(tmp_path / "one") != []
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
  shutil.copytree(tmp_path / "two", tmp_path / "copy")
  measure = ("evaluate", "--features=digits", "--metrics=fd", "--num=51", "--batch_size=16", "--sigmas=80")
  ran = [
    run_cli(*measure, f"--workdir={tmp_path / 'copy'}"),
    *two(*measure, f"--workdir={tmp_path / 'two'}"),
  ]
  said = said_by(ran)
  assert {process.returncode for process in ran} == {0}, said
  by_one, by_two = (distances(tmp_path / run / "evaluations.jsonl") for run in ("copy", "two"))
  assert len(by_one) == 2 and by_two == pytest.approx(by_one, rel=1e-5)
  print(f"evaluated by two processes: {by_two}, by one: {by_one}")


@pytest.mark.slow
def test_hosts_with_caches_of_their_own_measure_by_the_classifier_of_the_first(tmp_path):
  program = (
    "import sys, jax\n"
    "jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))\n"
    "from cm_jax.evaluation.features import load_features\n"
    "from cm_jax.evaluation.features.classifier import load_classifier\n"
    "from cm_jax.storage.downloads import cache_folder\n"
    "used, kept = load_features('digits'), load_classifier(cache_folder() / 'digits-features')\n"
    "print('used', used.hash, used.scale, 'kept', kept.hash, kept.scale)"
  )
  source = open_source("digits")
  for number in range(2):
    features = train_features(images(source), labels(source), seed=3 * number, num_steps=2, name="digits")
    save_features(tmp_path / str(number) / "digits-features", features)
  address = f"127.0.0.1:{peers_port()}"
  both = [
    run_cli(address, str(number), program=("-c", program), CM_JAX_CACHE=str(tmp_path / str(number)))
    for number in range(2)
  ]
  said = said_by(both)
  assert [process.returncode for process in both] == [0, 0], said
  (first, own), (second, other) = (text.splitlines()[-1].split("kept") for text in said)
  assert first == second == f"used{own} ", said
  assert own != other, said


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


@pytest.mark.slow
@pytest.mark.parametrize("still", [0, 1])
def test_of_a_host_that_stands_still_with_its_connections_open_the_other_says_so(tmp_path, still):
  config = write_config(tmp_path / "config.py", num_steps=100_000, checkpoint_every=100_000, log_every=10)
  run = tmp_path / "run"
  both = two("train", config, "--noprogress", f"--workdir={run}", "--peer_timeout=10")
  trains(run, both)
  both[still].send_signal(signal.SIGSTOP)
  begin = time.monotonic()
  try:
    said = both[1 - still].communicate(timeout=100)[0]
  finally:
    both[still].kill()
    both[still].communicate()
  taken = time.monotonic() - begin
  assert both[1 - still].returncode == peers.STATUS and taken < 40, (said, taken)
  expected = "process 0 (", "which the others meet at, does not answer"
  expected = expected if still == 0 else ("process 1 (", "gave no sign of life for 10 s")
  assert all(part in said.splitlines()[-1] for part in expected), said
  print(f"the other ended {taken:.1f} s after process {still} stood still, with --peer_timeout=10")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
  """With a teacher, parameters shared between processes or not; the curve is that of one process."""
  teacher, run = tmp_path / "teacher", tmp_path / "run"
  loop.train(build(tiny.config(num_steps=3)), teacher, progress=False)
  (tmp_path / "config.py").write_text(
    "from tests import tiny\n\ndef get_config():\n"
    "  c = tiny.config(tiny.CD, num_steps=8, checkpoint_every=100)\n"
    "  c.network = {'name': 'teacher'}\n  c.mesh.rules = (('.', 'fsdp_small'),)\n  return c\n"
  )
  config = read_file(str(tmp_path / "config.py"))
  config.teacher.path = str(teacher)
  loop.train(build(config), tmp_path / "alone", progress=False)
  command = ["train", f"--config={tmp_path / 'config.py'}", f"--teacher={teacher}", "--noprogress"]
  for processes, fsdp, step in ((4, 2, 2), (1, 1, 4), (2, 2, 6), (4, 1, 8)):
    options = f"--config.mesh.fsdp={fsdp}", f"--config.run.num_steps={step}", f"--workdir={run}"
    ran = several(processes, *command, *options) if processes > 1 else [run_cli(*command, *options)]
    said = said_by(ran)
    assert [process.returncode for process in ran] == [0] * processes, said
    assert CheckpointStore(run).latest() == step
  expected, found = (np.array(losses(tmp_path / name)) for name in ("alone", "run"))
  difference = np.abs(found / expected - 1).max()
  assert len(found) == 8 and difference < 1e-5
  print(f"4, 1, 2 and 4 processes, fsdp 2, 1, 2, 1: at most {difference:.1e} off one process")
