"""Time several programs in turns: a noisy machine is noisy for all of them."""

import time
from collections.abc import Callable, Mapping


def in_turns(
  programs: Mapping[str, Callable[[], None]],
  rounds: int,
  least_seconds: float = 0.25,
  progress: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
  """Return the seconds a call of each program takes in each round; a first round warms up and does not count.

  Args:
    programs: By name; each waits for its result.
    rounds: How often each is timed. Each round begins with another program.
    least_seconds: A timing repeats its program until this long has passed.
    progress: Called after each timing.
  """
  seconds: dict[str, list[float]] = {name: [] for name in programs}
  names = list(programs)
  for number in range(-1, rounds):
    start = number % len(names)
    for name in names[start:] + names[:start]:
      count, before = 0, time.perf_counter()
      while (elapsed := time.perf_counter() - before) < least_seconds or not count:
        programs[name]()
        count += 1
      if number >= 0:
        seconds[name].append(elapsed / count)
      progress()
  return seconds
