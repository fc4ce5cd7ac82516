"""Signals (`cli/signals.py`): raised at once, noted for a boundary, left alone where they are ignored."""

import os
import signal

import pytest

from cm_jax import cli
from cm_jax.cli import report, signals


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_command_with_one_line(monkeypatch, capsys, number, status):
  monkeypatch.setattr(report, "main", lambda values: os.kill(os.getpid(), number))
  before = signal.getsignal(number)
  assert cli.run(["report"]) == status
  word = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
  assert capsys.readouterr().err == f"cm_jax report: {word}; the same command goes on\n"
  assert signal.getsignal(number) is before


def test_at_a_boundary_the_first_is_noted_and_more_of_a_scheduler_change_nothing():
  with signals.handled(), signals.at_a_boundary() as boundary:
    boundary.begin()
    assert not boundary.reached()
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGTERM)
    assert boundary.reached()
    stopped = boundary.end("saved")
  assert str(stopped) == "saved" and stopped.status == 75


def test_before_the_boundary_begins_there_is_nothing_to_wait_for():
  with signals.handled(), signals.at_a_boundary(), pytest.raises(signals.Stopped, match="stopped by SIGTERM"):
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_ignored_stays_so(monkeypatch):
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with signals.handled():
      os.kill(os.getpid(), signal.SIGHUP)
  finally:
    signal.signal(signal.SIGHUP, before)


def test_an_error_of_the_system_is_one_line(monkeypatch, capsys):
  def full(values):
    raise OSError(28, "No space left on device", "/data/x.png")

  monkeypatch.setattr(report, "main", full)
  assert cli.run(["report"]) == 1
  said = capsys.readouterr().err
  assert said.startswith("cm_jax report: /data/x.png = No space left on device: expected a place that can be")
  assert said.count("\n") == 1
