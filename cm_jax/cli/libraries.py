"""How a command imports and traces in less time: Python looks for no garbage where there is none."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
  """Look for no garbage meanwhile: what is imported or traced stays, and to look through it again and again
  takes a tenth of the time.
  """
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def load() -> None:
  """Import JAX and what every command with a model needs, and leave it out of all later looks for garbage.

  Once: what is garbage at that moment stays too.
  """
  if "jax" in sys.modules:
    return
  with uncollected():
    importlib.import_module("cm_jax.assembly")
    gc.freeze()
