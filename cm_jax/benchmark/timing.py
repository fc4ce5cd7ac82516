"""Time several programs in turns: a noisy machine is noisy for all; they are compared within each round."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


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


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
  """Return the median over rounds of one program's time over another's.

  >>> ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0])
  2.0
  """
  return float(np.median(np.asarray(seconds) / np.asarray(base)))


def excess(seconds: Sequence[float], base: Sequence[float], unit: Sequence[float]) -> float:
  """Return the median over rounds of (seconds - base)/unit: by how many units one program takes longer.

  >>> excess([5.0, 7.0], [3.0, 5.0], [1.0, 1.0])
  2.0
  """
  return float(np.median((np.asarray(seconds) - np.asarray(base)) / np.asarray(unit)))
