"""A process that fails before the others have met it, or as nobody expects: all end soon, with its line."""

import re
import socket
import time

import pytest

from cm_jax import cli
from cm_jax.training import early
from tests import needs
from tests.storage.moto_server import server
from tests.training.test_peers import peers_port
from tests.training.test_train import run_cli, write_config

# An error of the program where training begins, on one process.
WRONG = """
import sys
from cm_jax import cli
from cm_jax.training import program
def wrong(*_):
  raise KeyError("no such thing")
program.Program.create = wrong
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "which"), [("input", 1), ("store", 0), ("error", 0)])
def test_who_fails_is_named_by_the_others_soon(tmp_path, kind, which):
  config, job = write_config(tmp_path / "config.py", num_steps=100_000), f"127.0.0.1:{peers_port()}"
  folder = tmp_path / "run"
  if kind == "store":
    needs.buckets()
    server().make("early")
    folder = f"s3://early/{which}"
  began, processes = time.monotonic(), []
  for number in range(2):
    fails = number == which
    given = f"--config={tmp_path / 'none.py'}" if fails and kind == "input" else config
    arguments = ["train", given, "--noprogress", f"--workdir={folder}", f"--coordinator={job}"]
    variables = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"} if fails and kind == "store" else {}
    program = ("-c", WRONG) if fails and kind == "error" else ("-m", "cm_jax")
    arguments += ["--num_processes=2", f"--process_id={number}"]
    processes.append(run_cli(*arguments, program=program, **variables))
  try:
    said = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    [process.kill() for process in processes]
  taken = time.monotonic() - began
  assert processes[which].returncode == (1 if kind == "error" else 2), said[which]
  assert processes[1 - which].returncode == 1, said[1 - which]
  expected = {"input": "none.py", "store": "--workdir = s3://early", "error": "KeyError: .*no such thing"}
  line = rf"^cm_jax: process {which} \(\S+\) ended: .*{expected[kind]}.*; this process ends too$"
  other = said[1 - which]
  assert len(re.findall(line, other, re.MULTILINE)) == 1 and "Traceback" not in other, other
  assert said[which].count("Traceback") == (kind == "error") and "ended: " not in said[which], said[which]
  assert taken < 120
  print(f"{kind} on process {which}: both ended {taken:.0f} s after the start")


def test_who_is_alone_tells_nobody(monkeypatch):
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    monkeypatch.delenv(name, raising=False)
  assert early.job() is None
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  assert early.job() is None  # set in part: an error of its own
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  assert str(early.job()) == "set by hand: process 1 of 2, coordinator 127.0.0.1:1"


def test_commands_of_one_process_join_no_job(monkeypatch, capsys):
  variables = ("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1"), ("JAX_NUM_PROCESSES", "2"), ("JAX_PROCESS_ID", "1")
  for name, value in variables:
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(early, "tell", lambda *_: pytest.fail("told"))
  for command in cli.ALONE:
    assert cli.run([command]) == 2
  assert capsys.readouterr().err.count("\n") == len(cli.ALONE)
  told = []
  monkeypatch.setattr(early, "tell", lambda job, line, status: told.append((job.process, line, status)))
  assert cli.run(["sample"]) == 2
  assert len(told) == 1 and told[0][::2] == (1, 2) and told[0][1].startswith("--")


@pytest.mark.slow
def test_the_others_are_not_waited_for_for_ever():
  """None of them comes."""
  program = "from cm_jax.training import early\nearly.SECONDS = 2.0\nfrom cm_jax import cli\ncli.main()"
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    job = f"--coordinator=127.0.0.1:{taken.getsockname()[1]}"
    began = time.monotonic()
    one = run_cli("train", "--config=none.py", "--workdir=x", job, "--num_processes=2", "--process_id=1",
                  program=("-c", program))  # fmt: skip
    said = one.communicate(timeout=100)[0]
  assert one.returncode == 2 and time.monotonic() - began < 30, said
  assert said.startswith("cm_jax train: ") and "none.py" in said and "Traceback" not in said
