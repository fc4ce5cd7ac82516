"""Which checkpoint of a run is its best, by what `config.run.evaluate` measures while it trains."""

from collections.abc import Collection
from typing import Any

from etils import epath

from cm_jax.assembly.complete import current
from cm_jax.errors import UserError
from cm_jax.evaluation.metrics import LARGER_IS_BETTER, METRICS
from cm_jax.storage import lines, run
from cm_jax.training.best import Best, Criterion, best_of


def criterion_of(evaluate: Any) -> Criterion:
  """Return what the metric of a section `config.run.evaluate` compares checkpoints by: its first value.

  >>> import ml_collections
  >>> criterion_of(ml_collections.ConfigDict({"metric": "is"}))
  Criterion(name='is', larger_is_better=True)
  """
  first = next(iter(METRICS[evaluate.metric].records))
  return Criterion(first, evaluate.metric in LARGER_IS_BETTER)


def best_checkpoint(workdir: epath.PathLike, steps: Collection[int]) -> Best:
  """Return the best of a run's checkpoints.

  Args:
    workdir: The run folder.
    steps: That have a checkpoint.

  Raises:
    UserError: None of them was measured, or the run's config cannot be read.
  """
  stored, folder = run.read_config(workdir), run.RunFolder.at(workdir)
  expected = "a number: no checkpoint of this run was measured while it trained (config.run.evaluate.every)"
  if stored is None:
    raise UserError("step", "best", expected)
  evaluate = current(stored).run.evaluate
  if evaluate.metric not in METRICS:
    raise UserError("step", "best", f"a number: {folder.config} measures {evaluate.metric}, which is unknown")
  found = best_of((row for _, row in lines.by_step(folder.metrics)), steps, criterion_of(evaluate))
  if found is None:
    raise UserError("step", "best", expected)
  return found
