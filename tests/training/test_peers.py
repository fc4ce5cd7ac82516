"""Processes that watch each other: what differs is named before the first step, who dies takes the others
along."""

import json
import os
import threading
import time

import pytest

from cm_jax import coordination
from cm_jax.errors import UserError
from cm_jax.training import peers
from tests.training.test_train import run_cli, write_config

# a watch that ends its process ends only its thread here
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Store:
  """JAX's key-value store, in a dict."""

  def __init__(self):
    self.values, self.answers = {}, True

  def key_value_set(self, key, value, allow_overwrite=False):
    if not self.answers:
      raise RuntimeError("UNAVAILABLE: no coordinator")
    assert allow_overwrite or key not in self.values
    self.values[key] = value

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

  def key_value_try_get(self, key):
    return self.values[key]

  def blocking_key_value_get(self, key, milliseconds):
    return self.values[key]


@pytest.mark.parametrize(
  "others, said",
  [
    (
      [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}],
      "a of process 2 (h2) = 2: expected 1, as process 0 has it",
    ),
    (
      [{"a": 1, "b": "y"}, {"a": 2, "b": "x"}],
      "b of process 1 (h1) = y: expected x, as process 0 has it (processes 1, 2 differ)",
    ),
    ([{"a": 1}, {"a": 1, "b": "x"}], "b of process 1 (h1) = None: expected x, as process 0 has it"),
  ],
)
def test_a_process_with_other_facts_is_named_by_all(monkeypatch, others, said):
  first, store = {"a": 1, "b": "x"}, Store()
  for number, facts in enumerate([first, *others]):
    store.values[f"cm_jax/meeting/{number}"] = json.dumps(facts)
    store.values[f"cm_jax/name/{number}"] = f"h{number}"
  monkeypatch.setattr(coordination, "store", lambda: store)
  for number, facts in enumerate([first, *others]):
    del store.values[f"cm_jax/meeting/{number}"]
    monkeypatch.setattr(coordination, "place", lambda number=number: (number, 3))
    with pytest.raises(UserError) as error:
      peers.agree("meeting", facts)
    assert str(error.value) == said


def ends(monkeypatch, capsys, store, act) -> str:
  """Run a watch of process 1 of 3, whose others live for a while, and return what it says when it ends."""
  ended = threading.Event()
  monkeypatch.setattr(peers, "PERIOD", 0.02)

  def stop(status):
    ended.set()
    raise SystemExit  # ends the thread

  monkeypatch.setattr(os, "_exit", stop)
  watch = peers.Watch(store, 1, 3, limit=0.4)
  watch.start()
  for beat in range(200):
    for number in act(beat):
      store.values[f"cm_jax/alive/{number}"] = str(beat)
    if ended.wait(0.02):
      return capsys.readouterr().err
  watch.leave()
  return ""


def test_a_process_without_a_sign_of_life_is_named(monkeypatch, capsys):
  store = Store()
  store.values["cm_jax/name/2"] = "host-2"
  said = ends(monkeypatch, capsys, store, lambda beat: (0, 2) if beat < 10 else (0,))
  assert "process 2 (host-2) gave no sign of life for 0 s; this process ends too" in said


def test_a_process_that_fails_says_why_to_the_others(monkeypatch, capsys):
  store = Store()

  def act(beat):
    if beat == 5:
      store.values["cm_jax/left/2"] = "process 2 (host-2) ended: config.data.source = x: no such file"
    return (0, 2)

  assert "process 2 (host-2) ended: config.data.source = x" in ends(monkeypatch, capsys, store, act)


@pytest.mark.parametrize(("status", "ours"), [("75", 75), ("2", 1), (None, 1)])
def test_who_ends_with_another_can_be_started_again_if_that_can(monkeypatch, capsys, status, ours):
  store, ended = Store(), []
  store.values |= {"cm_jax/left/0": "process 0 (h) ended: x", "cm_jax/status/0": status}
  if status is None:
    del store.values["cm_jax/status/0"]
  monkeypatch.setattr(peers, "PERIOD", 0.01)

  def stop(number):
    ended.append(number)
    raise SystemExit

  monkeypatch.setattr(os, "_exit", stop)
  watch = peers.Watch(store, 1, 2, limit=10)
  watch.start()
  watch.join(5)
  assert ended == [ours]
  said = capsys.readouterr().err
  assert said.startswith("cm_jax: process 0 (h) ended: x; ") and ("the same command" in said) == (ours == 75)


@pytest.mark.parametrize(
  ("error", "waits"),
  [
    (
      "UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc:538] Read error: Connection reset by peer",
      True,
    ),
    ("INTERNAL: NCCL operation ncclAllReduce failed: unhandled system error", True),
    ("DEADLINE_EXCEEDED: Barrier timed out. Id: save_3", True),
    ("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes", False),
    ("INTERNAL: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
    ("shapes (3, 4) and (5,) are not aligned", False),
  ],
)
def test_only_where_others_may_be_dead_is_waited_for_them(monkeypatch, error, waits):
  waited = []
  monkeypatch.setattr(peers, "_watch", peers.Watch(Store(), 0, 2, limit=7))
  monkeypatch.setattr(peers.time, "sleep", waited.append)
  peers.wait(RuntimeError(error))
  assert waited == ([7 + 3 * peers.PERIOD] if waits else [])


def test_a_process_that_is_done_may_be_silent(monkeypatch, capsys):
  store = Store()

  def act(beat):
    if beat == 5:
      store.values["cm_jax/left/2"] = ""
    return (0, 2) if beat < 5 else (0,)

  assert ends(monkeypatch, capsys, store, act) == ""


def test_a_store_that_does_not_answer_is_process_0(monkeypatch, capsys):
  store = Store()

  def act(beat):
    store.answers = beat < 5
    return (0, 2)

  assert "process 0, which the others meet at, does not answer" in ends(monkeypatch, capsys, store, act)


@pytest.mark.parametrize("text", ["9", "none", "1e9"])
def test_a_silence_that_cannot_be(text):
  with pytest.raises(UserError, match=f"CM_JAX_PEER_TIMEOUT = {text}: expected 10 to 86400"):
    peers.seconds_alone({"CM_JAX_PEER_TIMEOUT": text})


@pytest.mark.slow
def test_of_two_processes_one_is_killed_and_the_other_ends(tmp_path):
  config = write_config(tmp_path / "config.py", num_steps=100_000, checkpoint_every=50, log_every=10)
  run, port = tmp_path / "run", peers_port()
  arguments = ("train", config, "--noprogress", f"--workdir={run}", "--peer_timeout=10")
  job = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
  first, second = (run_cli(*arguments, *job, f"--process_id={number}") for number in range(2))
  deadline = time.monotonic() + 120
  while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
    time.sleep(0.1)
  second.kill()
  killed = time.monotonic()
  output = first.communicate(timeout=120)[0]
  assert first.returncode == peers.STATUS, output
  assert "process 1 (" in output and "gave no sign of life for 10 s" in output
  print(f"the other ended {time.monotonic() - killed:.0f} s after the kill, with --peer_timeout=10")


@pytest.mark.slow
def test_two_processes_with_other_settings_stop_before_the_first_step(tmp_path):
  config = write_config(tmp_path / "config.py", num_steps=20)
  run, port = tmp_path / "run", peers_port()
  arguments = ("train", config, "--noprogress", f"--workdir={run}")
  job = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
  other = {1: ("--config.optimizer.b1=0.5",), 0: ()}
  both = [run_cli(*arguments, *job, *other[number], f"--process_id={number}") for number in range(2)]
  for process in both:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "config.optimizer.b1 of process 1 (" in output and ") = 0.5: expected 0.9, as process 0" in output
  assert not (run / "metrics.jsonl").exists()


def peers_port() -> int:
  import socket

  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return int(free.getsockname()[1])
