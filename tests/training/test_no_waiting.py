"""Between two log steps the loop fetches nothing from the devices, and what a step takes is there already."""

import jax
import pytest
from jax._src.array import ArrayImpl

from cm_jax.assembly import build
from cm_jax.training import loop
from cm_jax.training.program import Program
from tests import tiny

LOG_EVERY, STEPS = 5, 10


@pytest.mark.slow
def test_steps_wait_for_nothing_but_the_log(tmp_path, monkeypatch):
  taken, fetched = [], []
  value = ArrayImpl._value.fget

  class Guarded(Program):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      step = self.step

      def guarded(*arguments):
        if isinstance(jax.tree.leaves(arguments)[0], jax.core.Tracer):  # shapes are checked first
          return step(*arguments)
        taken.append(len(taken) + 1)
        with jax.transfer_guard_host_to_device("disallow"):
          return step(*arguments)

      self.step = guarded

  def counted(self):
    fetched.append(taken[-1] if taken else 0)
    return value(self)

  monkeypatch.setattr(loop, "Program", Guarded)
  monkeypatch.setattr(ArrayImpl, "_value", property(counted))
  config = tiny.config(num_steps=STEPS, log_every=LOG_EVERY, checkpoint_every=STEPS)
  loop.train(build(config), tmp_path, progress=False)
  assert taken == list(range(1, STEPS + 1))
  # the first, which compiles, is waited for: rates are of those after it
  assert set(fetched) <= {0, 1, LOG_EVERY, STEPS}
  assert LOG_EVERY in fetched
