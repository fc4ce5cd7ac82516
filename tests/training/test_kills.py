"""kill -9 at random moments, with saves in the background: what is on the disk can always be gone on with."""

import json
import subprocess
import sys

import pytest

from cm_jax.assembly import build
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.program import Program
from tests import tiny
from tests.training.test_train import REPO, equal, losses

KILLS = 20
# A process that has imported everything forks before it starts JAX: a life costs its steps, not its imports.
LIVES = """
import json, os, pathlib, random, signal, sys, time
import jax
from cm_jax.assembly import build
from cm_jax.training import loop
from cm_jax.training.checkpoint import CheckpointStore
from tests.training.test_kills import config_of

folder, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
chance, begun, open_saves = random.Random(17), folder / "begun", 0

def live(run, num_steps):
  process = os.fork()
  if not process:
    try:
      loop.train(build(config_of(num_steps)), run, [(1, lambda step, state: begun.touch())], False)
    finally:
      os._exit(sys.exc_info()[0] is not None)
  return process

for _ in range(kills):
  store, saves = CheckpointStore(folder / "killed"), chance.randrange(3)
  there = store.latest() or 0
  process = live(folder / "killed", 10**6)
  while not begun.exists() or (store.latest() or 0) < there + 2 * saves:
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    time.sleep(0.005)
  time.sleep(chance.uniform(0, 0.3))
  os.kill(process, signal.SIGKILL)
  os.waitpid(process, 0)
  begun.unlink()
  open_saves += any((folder / "killed" / "checkpoints").glob("*orbax-checkpoint-tmp*"))
last = CheckpointStore(folder / "killed").latest() + 5
for run in ("killed", "whole"):
  assert os.waitpid(live(folder / run, last), 0)[1] == 0
print(json.dumps({"steps": last, "open_saves": open_saves}))
"""


def config_of(num_steps: int):
  return tiny.config(num_steps=num_steps, checkpoint_every=2)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
  command = [sys.executable, "-c", LIVES, str(tmp_path), str(KILLS)]
  done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  told = json.loads(done.stdout.splitlines()[-1])
  steps, program = told["steps"], Program(build(config_of(told["steps"])))
  stores = [CheckpointStore(tmp_path / run) for run in ("killed", "whole")]
  equal(*(store.restore(steps, program.shapes, program.shardings)[0] for store in stores))
  assert (
    losses(tmp_path / "killed") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == steps
  )
  assert [
    path.name for path in (tmp_path / "killed" / "checkpoints").iterdir() if not path.name.isdigit()
  ] == []
  print(
    f"{KILLS} kills in {steps} steps, {told['open_saves']} of them within a save: the same to the last bit"
  )
