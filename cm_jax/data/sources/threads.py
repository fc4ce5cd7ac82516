"""Work on many items by threads, in order: decoding is what takes time, and it lets go of Python's lock."""

import collections
import concurrent.futures
import os
import sys
from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
_CHUNK = 64  # a future costs as much as a small image


def cores() -> int:
  """Return how many cores this process may use."""
  if sys.platform == "linux":
    return len(os.sched_getaffinity(0))  # a container's share
  return os.cpu_count() or 1


def in_order(function: Callable[[Any], T], items: Any, description: str = "") -> Generator[T, None, None]:
  """Yield function(item) for every item, in order, computed by a thread a core; few results wait at a time.

  Shows a progress bar if it takes longer than some seconds.

  Args:
    function: From an item.
    items: A sequence; may be a range.
    description: Of the progress bar.

  >>> list(in_order(abs, [-1, 2, -3]))
  [1, 2, 3]
  """
  from tqdm import tqdm

  workers = cores()
  chunks = (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
  with (
    concurrent.futures.ThreadPoolExecutor(workers, "cm_jax-decode") as pool,
    tqdm(total=len(items), desc=description, unit="img", delay=3, disable=None) as bar,
  ):
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for part in chunks:
        pending.append(pool.submit(lambda part: [function(item) for item in part], part))
        if len(pending) > 2 * workers:
          done = pending.popleft().result()
          bar.update(len(done))
          yield from done
      while pending:
        done = pending.popleft().result()
        bar.update(len(done))
        yield from done
    finally:
      for future in pending:
        future.cancel()
