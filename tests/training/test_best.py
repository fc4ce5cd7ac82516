"""The best checkpoint, by what is measured while a run trains: saved, kept, found again, told."""

import math

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import build, load_model
from cm_jax.assembly.best import best_checkpoint, criterion_of
from cm_jax.cli import header
from cm_jax.errors import UserError
from cm_jax.evaluation.metrics import METRICS
from cm_jax.training import loop
from cm_jax.training.best import Best, Criterion, best_of
from cm_jax.training.checkpoint import CheckpointStore
from tests import tiny
from tests.training.test_peers import peers_port
from tests.training.test_train import REPO, run_cli

MEASURED = {1: math.nan, 2: 3.0, 3: 1.5, 4: 1.25, 5: 1.25, 6: 2.0, 7: 4.0, 8: 0.5}


def config_of(num_steps: int, metric: str = "fd"):
  config = tiny.config(num_steps=num_steps, log_every=5, checkpoint_every=5, keep_checkpoints=1)
  config.run.evaluate.every, config.run.evaluate.metric = 1, metric
  return config


def train(folder, num_steps: int, metric: str = "fd", measured=MEASURED):
  config = config_of(num_steps, metric)
  measures = [(1, lambda step, state: {metric: measured[step], "is_std": 9.0 - step})]
  criterion = criterion_of(config.run.evaluate)
  return loop.train(build(config), folder, progress=False, measures=measures, criterion=criterion)


@pytest.mark.slow
def test_it_is_saved_where_it_was_measured_kept_and_found_again(tmp_path):
  train(tmp_path, 6)
  assert CheckpointStore(tmp_path).steps() == [4, 6]  # 4 is no step that is saved otherwise
  at_4 = jax.tree.map(np.asarray, load_model(tmp_path, 4, "ema").params)
  jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path, "best").params, at_4)
  train(tmp_path, 7)  # another process, that measures worse
  assert CheckpointStore(tmp_path).steps() == [4, 7]
  assert best_checkpoint(tmp_path, [4, 7]) == Best(4, 1.25)
  assert header.best(build(config_of(7)), str(tmp_path)) == ["best by fd: 1.25 at step 4, kept (--step=best)"]
  out = ("--num=2", "--num_steps=1", f"--out={tmp_path / 'x.npz'}")
  assert cli.run(["sample", f"--workdir={tmp_path}", "--step=best", *out]) == 0
  train(tmp_path, 8)
  assert CheckpointStore(tmp_path).steps() == [8] and best_checkpoint(tmp_path, [8]) == Best(8, 0.5)
  with pytest.raises(
    UserError, match="^step = best: expected a number: no checkpoint of this run was measur"
  ):
    best_checkpoint(tmp_path, [])


@pytest.mark.slow
def test_where_more_is_better_it_is_the_largest(tmp_path):
  train(tmp_path, 8, "is")
  assert CheckpointStore(tmp_path).steps() == [7, 8]
  assert load_model(tmp_path, "best").provenance["step"] == 7


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_which_way_is_better(name):
  section = tiny.config().run.evaluate
  section.metric = name
  criterion = criterion_of(section)
  assert criterion.name == next(iter(METRICS[name].records))
  assert criterion.larger_is_better == (name in ("is", "prdc", "class_entropy"))


@pytest.mark.parametrize("value", [None, math.nan, -math.inf, "3", True, [1.0]])
def test_what_is_no_number_is_never_the_best(value):
  rows = [{"step": 3, "fd": value}, {"step": 9, "fd": 7.5}, {"step": 11, "fd": value}, {"step": 12}]
  assert best_of(rows, range(20), Criterion("fd")) == Best(9, 7.5)
  assert best_of(rows, range(20), Criterion("fd", larger_is_better=True)) == Best(9, 7.5)
  assert best_of(rows, (3, 11), Criterion("fd")) is None


@pytest.mark.parametrize("given", ["bet", "1.5", ""])
def test_a_step_is_a_number_or_best(given, capsys):
  assert cli.run(["sample", "--workdir=x", f"--step={given}", "--out=x.npz"]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert "step" in line and "expected a step, -1 for the newest, or best" in line


@pytest.mark.slow
def test_processes_that_measure_otherwise_keep_the_same(tmp_path):
  script = tmp_path / "train.py"
  script.write_text(
    "import sys\nimport jax\n"
    f"jax.distributed.initialize('127.0.0.1:{peers_port()}', 2, int(sys.argv[1]))\n"
    "from cm_jax.training.checkpoint import CheckpointStore\n"
    "from tests.training.test_best import MEASURED, train\n"
    "mine = {step: (value if sys.argv[1] == '0' else 10 - value) for step, value in MEASURED.items()}\n"
    f"for stop in (6, 7):\n  train({str(tmp_path / 'run')!r}, stop, measured=mine)\n"
    f"print(CheckpointStore({str(tmp_path / 'run')!r}).steps())\n"
  )
  both = [run_cli(str(number), program=(str(script),), PYTHONPATH=str(REPO)) for number in range(2)]
  said = [process.communicate(timeout=180)[0] for process in both]
  assert [process.returncode for process in both] == [0, 0], said
  assert all(text.splitlines()[-1] == "[4, 7]" for text in said), said
