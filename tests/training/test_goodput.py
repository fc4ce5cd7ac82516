"""Where the wall time of a run goes: exact by a clock of our own, and in real runs that wait where they are
told to."""

import json
import re
import threading
import time

import pytest

from cm_jax.assembly import build
from cm_jax.training import loop
from cm_jax.training.goodput import PARTS, Goodput, wall_seconds
from tests import tiny


class Clock:
  """Seconds that pass when told to."""

  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds

  def sleep(self, seconds):
    self.seconds += seconds


class Step:
  """A result of a device that is done when told to."""

  def __init__(self):
    self.begun, self.done = threading.Event(), threading.Event()

  def block_until_ready(self):
    self.begun.set()
    assert self.done.wait(10)


def spent(goodput: Goodput) -> dict[str, float]:
  return {part: seconds for part, seconds in goodput.seconds().items() if seconds}


def test_every_second_is_of_one_part_and_blocks_nest():
  clock = Clock()
  goodput = Goodput(clock)
  clock.sleep(3)
  goodput.enter("steps")
  clock.sleep(7)
  with pytest.raises(ZeroDivisionError), goodput.spent("evaluation"):
    clock.sleep(2)
    with goodput.spent("checkpoint"):
      clock.sleep(0.5)
    clock.sleep(1)
    raise ZeroDivisionError
  clock.sleep(6.5)
  assert spent(goodput) == {"setup": 3, "steps": 13.5, "evaluation": 3, "checkpoint": 0.5}
  scalars = goodput.scalars()
  assert scalars.pop("wall_seconds") == 20 and sum(scalars.values()) == pytest.approx(1)
  assert scalars.keys() == {f"share_{part}" for part in PARTS} and scalars["share_steps"] == 0.675
  told = "steps 67.5 %, evaluation 15.0 %, setup 15.0 %, checkpoint 2.5 %"
  assert goodput.told() == f"wall time 0:00:20: {told}"


def test_no_time_is_no_share():
  goodput = Goodput(Clock())
  assert set(goodput.scalars().values()) == {0.0} and goodput.told() == "wall time 0:00:00: steps 0.0 %"


def until(condition):
  end = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < end
    time.sleep(1e-3)


@pytest.mark.parametrize(
  "done_after,waits",
  [(None, 0.0), (5.0, 0.0), (4.0, 1.0), (1.5, 3.5), (0.0, 5.0)],
  ids=["never", "as_long", "last_second", "early", "before"],
)
def test_a_wait_for_a_batch_counts_from_when_the_devices_are_idle(done_after, waits):
  clock, step = Clock(), Step()
  goodput = Goodput(clock)

  def finish():
    step.done.set()
    until(lambda: goodput._devices.idle_since() < float("inf"))

  def batches():
    clock.sleep(2)  # nothing was given to the devices yet
    yield 1
    if done_after is not None:
      clock.sleep(done_after)
      finish()
    clock.sleep(5 - (done_after or 0))
    yield 2

  goodput.enter("steps")
  found = []
  for batch in goodput.inputs(batches()):
    found.append(batch)
    if batch == 1:
      goodput.handed(step)
      until(step.begun.is_set)
  step.done.set()
  expected = {"input": 2.0 + waits, "steps": 5.0 - waits}
  assert found == [1, 2] and spent(goodput) == {part: value for part, value in expected.items() if value}


def test_the_thread_that_waits_for_the_devices_ends_with_the_batches():
  named = lambda: {thread for thread in threading.enumerate() if thread.name == "cm_jax-goodput"}
  before, goodput, step = named(), Goodput(), Step()  # one of an earlier test may be about to end
  step.done.set()
  for batch in goodput.inputs(range(5)):
    goodput.handed(step)
    if batch == 2:
      assert len(named() - before) == 1
      break
  until(lambda: not named() - before)


@pytest.mark.parametrize(
  "before,until_seconds,expected",
  [
    ({}, 0.0, {}),
    ({}, 40.0, {"lost": 40.0}),
    ({"steps": 30.0, "lost": 2.0}, 0.0, {"steps": 30.0, "lost": 2.0}),
    ({"steps": 30.0, "lost": 2.0}, 32.0, {"steps": 30.0, "lost": 2.0}),
    ({"steps": 30.0, "lost": 2.0, "setup": 8}, 45.0, {"steps": 30.0, "lost": 7.0, "setup": 8.0}),
    (
      {"steps": 30.0, "sleep": 9.0, "input": float("nan"), "compile": -1.0, "restore": "x", "setup": True},
      31.0,
      {"steps": 30.0, "lost": 1.0},
    ),
  ],
)
def test_a_run_that_goes_on_counts_what_was_done_before_and_what_was_lost(before, until_seconds, expected):
  clock = Clock()
  goodput = Goodput(clock)
  goodput.go_on(before, until_seconds)
  clock.sleep(1)
  assert spent(goodput) == {**expected, "setup": expected.get("setup", 0.0) + 1}


def test_wall_seconds_of_lines_of_any_form():
  assert wall_seconds([]) == wall_seconds([{"step": 3}, None, {"wall_seconds": "7"}]) == 0
  assert wall_seconds([{"wall_seconds": 7}, {"wall_seconds": 9.5}, {"wall_seconds": None}]) == 9.5


@pytest.mark.slow
def test_a_run_says_where_its_time_went_and_what_a_kill_cost(tmp_path, monkeypatch):
  batches = loop.batches

  def slow(*arguments):
    for number, batch in enumerate(batches(*arguments)):
      time.sleep(0.3 if number == 2 else 0)
      yield batch

  def hook(step, state):
    time.sleep(0.2)
    if step == 5:
      raise KeyboardInterrupt

  monkeypatch.setattr(loop, "batches", slow)
  experiment, run = build(tiny.config(num_steps=6, checkpoint_every=3)), tmp_path / "run"
  measures = [(2, lambda step, state: time.sleep(0.1) or {"fd": float(step)})]
  with pytest.raises(KeyboardInterrupt):
    loop.train(experiment, run, [(1, hook)], progress=False, measures=measures)
  rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
  for row in rows:
    shares = {name: value for name, value in row.items() if name.startswith("share_")}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
  seconds = lambda row, part: row[f"share_{part}"] * row["wall_seconds"]
  # hooks of steps 1 to 4, measures of 2 and 4, the slow batch
  assert 1.0 <= seconds(rows[4], "evaluation") < 1.4 and 0.25 <= seconds(rows[4], "input") < 0.6
  assert seconds(rows[0], "compile") > 0 == seconds(rows[4], "lost") and seconds(rows[4], "restore") < 0.05
  assert seconds(rows[4], "compile") == pytest.approx(seconds(rows[0], "compile"))
  goodput = Goodput()
  loop.train(experiment, run, progress=False, goodput=goodput)
  again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert again[:3] == rows[:3] and [row["step"] for row in again] == [1, 2, 3, 4, 5, 6]
  # steps 4 and 5, with a hook of 0.2 s before the first of the two lines that were lost
  assert 0.2 <= seconds(again[3], "lost") <= rows[4]["wall_seconds"] - rows[2]["wall_seconds"]
  assert seconds(again[3], "restore") > 0
  assert seconds(again[3], "evaluation") == pytest.approx(0.7, abs=0.15)  # those before the checkpoint
  assert goodput.seconds()["checkpoint"] >= seconds(again[5], "checkpoint")
  assert re.fullmatch(r"wall time 0:00:\d\d: steps \d+\.\d %(, [a-z]+ \d+\.\d %)+", goodput.told())
