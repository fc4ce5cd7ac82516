"""What a command imports is looked through for garbage no more, and all that comes later is."""

import gc
import subprocess
import sys

import pytest

from cm_jax.cli.libraries import load, uncollected

STARTED = """
import gc
from cm_jax.cli.flags import start
start()
assert gc.isenabled() and gc.get_freeze_count() > 50_000, gc.get_freeze_count()
"""


def test_the_collector_is_as_it_was_behind_it():
  with pytest.raises(KeyError), uncollected():
    assert not gc.isenabled()
    raise KeyError
  assert gc.isenabled()
  gc.disable()
  try:
    with uncollected():
      pass
    assert not gc.isenabled()
  finally:
    gc.enable()


def test_once_jax_is_there_nothing_is_left_out():
  before = gc.get_freeze_count()
  load()
  assert gc.get_freeze_count() == before


@pytest.mark.slow
def test_a_command_leaves_out_its_libraries():
  subprocess.run([sys.executable, "-c", STARTED], check=True)
