"""What a person should know while the work goes on: lines on standard error, from one process, and how far it
is."""

import sys
from collections.abc import Iterable
from typing import Any


def notice(*lines: str) -> None:
  """Say lines, above a progress bar if there is one; only the first process of several does."""
  import jax

  if jax.process_index() != 0:
    return
  tqdm = sys.modules.get("tqdm")  # there is no bar where nobody has imported it
  for line in lines:
    said = f"cm_jax: {' '.join(line.split())}"
    if tqdm is None:
      print(said, file=sys.stderr, flush=True)
    else:
      tqdm.tqdm.write(said, file=sys.stderr)


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
  """Return tqdm's bar on standard error; where that is no terminal it is a line now and then: a log keeps all
  that is drawn over on a screen.

  Args:
    items: What is gone through; None where the bar is told.
    **options: tqdm's.

  >>> list(progress_bar(range(3), desc="three", unit="step"))
  [0, 1, 2]
  """
  from tqdm import tqdm

  if sys.stderr.isatty():
    return tqdm(items, **options)
  count = "{n_fmt} of {total_fmt}" if items is not None or "total" in options else "{n_fmt}"
  shape = f"{{desc}}: {count}, {{rate_fmt}}{{postfix}}"
  seldom: dict[str, Any] = {
    "mininterval": SECONDS,
    "maxinterval": SECONDS,
    "delay": 1e-3,
    "bar_format": shape,
  }
  return tqdm(items, file=_Lines(), **{**seldom, **options})


SECONDS = 30  # between two such lines


class _Lines:
  """A file that makes a line of each state of a bar, which begins with a return."""

  def write(self, text: str) -> None:
    if said := text.strip():
      print(said, file=sys.stderr, flush=True)

  def flush(self) -> None:
    """Nothing is held back."""
