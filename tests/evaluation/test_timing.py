"""Timing in turns: what is counted."""

from cm_jax.evaluation import timing


def test_each_is_timed_in_every_round_and_the_order_moves_on():
  calls = []
  programs = {name: lambda name=name: calls.append(name) for name in "abc"}
  ticks = []
  seconds = timing.in_turns(programs, rounds=3, least_seconds=0, progress=lambda: ticks.append(0))
  assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
  assert calls == [*"cab", *"abc", *"bca", *"cab"]  # the first round warms up
  assert len(ticks) == 12
  assert all(time > 0 for times in seconds.values() for time in times)


def test_a_timing_is_of_one_call(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

  def takes(duration: float):
    def program():
      clock[0] += duration

    return program

  seconds = timing.in_turns({"short": takes(0.125), "long": takes(2.0)}, rounds=2, least_seconds=0.5)
  assert seconds == {"short": [0.125, 0.125], "long": [2.0, 2.0]}
