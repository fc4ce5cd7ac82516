"""The training loop: data, step, metrics and checkpoints overlapped;
everything it resumes from is in the run folder.

The curriculum and every schedule are functions of the step, the position in the data is the step plus what
rollbacks left out: a checkpoint of the TrainState with that offset is all that an exact resume needs.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm_jax import config as config_lib
from cm_jax.data.pipeline import Pipeline, Rows, batches, rows_of
from cm_jax.errors import UserError, within
from cm_jax.models import Experiment
from cm_jax.storage import lines, lock, whole
from cm_jax.storage import run as run_lib
from cm_jax.training import sharding
from cm_jax.training.best import Best, Criterion, best_of
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.goodput import Goodput, wall_seconds
from cm_jax.training.metrics import MetricsLog
from cm_jax.training.program import Program
from cm_jax.training.resume import Position, go_back, resume, teacher_sha256
from cm_jax.training.rollback import Row
from cm_jax.training.step import STATES
from cm_jax.types import Params, TrainState

Hook = Callable[[int, TrainState], None]
Measure = Callable[[int, TrainState], Mapping[str, float]]


def train(
  experiment: Experiment,
  workdir: epath.PathLike,
  hooks: Sequence[tuple[int, Hook]] = (),
  progress: bool = True,
  began: Callable[[int], object] = lambda step: None,
  stopped: Callable[[int], bool] = lambda step: False,
  measures: Sequence[tuple[int, Measure]] = (),
  goodput: Goodput | None = None,
  criterion: Criterion | None = None,
) -> TrainState:
  """Train, from the newest checkpoint in `workdir` if there is one, to the end of the run,
  or where it is to stop earlier.

  Args:
    experiment: From `build`.
    workdir: The run folder; made if new.
    hooks: Pairs (every, hook): hook(step, state) is called after every so many steps and after the last.
    progress: Show a progress bar.
    began: Called once with the step that training starts after, when everything has been checked.
    stopped: Asked after every step whether to save and end there; on several hosts it has to answer all of
      them alike.
    measures: Pairs (every, measure): what measure(step, state) returns goes into the metrics of that step.
    goodput: Begun when the process was, so that it knows all of its time; None begins one here.
    criterion: Which of what is measured says how good a checkpoint is: the best is kept; None for none.

  Returns:
    The final state.

  Raises:
    UserError: The folder holds another run, or a checkpoint that cannot be read, or was trained on other
      data; another process trains there; the disk is full.
    TrainingStopped: `config.run.max_nonfinite` steps in a row were not finite, and `on_skips` is "stop", or
      it has gone back as often as it may.
  """
  run_lib.check_entries(workdir)
  with contextlib.ExitStack() as held:
    hold = lambda: held.enter_context(lock.held(run_lib.RunFolder.at(workdir).lock, "workdir", str(workdir)))
    mine = sharding.on_main(hold)
    still_mine = (lambda: None) if mine is None else mine.check
    timed = goodput or Goodput()
    return _train(
      experiment, workdir, hooks, progress, began, stopped, measures, timed, still_mine, criterion
    )


def _train(
  experiment: Experiment,
  workdir: epath.PathLike,
  hooks: Sequence[tuple[int, Hook]],
  progress: bool,
  began: Callable[[int], object],
  stopped: Callable[[int], bool],
  measures: Sequence[tuple[int, Measure]],
  goodput: Goodput,
  still_mine: Callable[[], None],
  criterion: Criterion | None,
) -> TrainState:
  config, run, method = experiment.config, experiment.config.run, experiment.method
  folder, num_steps = run_lib.RunFolder.at(workdir), method.num_steps
  stored = run_lib.read_config(folder.path)
  if stored is not None:
    experiment.check_resume(stored, str(folder.config))
  program = Program(experiment)
  stages = method.objective.needs.stages
  store = CheckpointStore(folder.path, run.keep_checkpoints, run.keep_every, keep_steps=stages[1:])
  with goodput.spent("restore"):
    found = resume(experiment, program, store, stored)
  state = program.create() if found is None else found.state
  start, seconds_before = int(state.step), 0.0 if found is None else found.seconds
  if start >= num_steps:
    return state

  with within("config"):
    rows = rows_of(experiment.source, run.ram_gb)
    pipeline = Pipeline(rows, config.batch_size, config.seed, jax.process_index(), jax.process_count())
  with goodput.spent("compile"):
    program.check(_shapes(rows, config.batch_size))
  teacher_params, distance_params = program.frozen()
  stage_starts = stages[1:-1]  # where the student becomes the teacher
  if found is not None and found.teacher is not None:
    teacher_params = found.teacher
  key = jax.random.key(config.seed)
  if jax.process_index() == 0:
    run_lib.write_config(folder.path, config, found is None, method.objective.trains)
  for damaged in () if found is None else found.damaged:
    store.set_aside(damaged)
  made_with = {
    "fingerprint": experiment.source.fingerprint,
    "teacher_sha256": teacher_sha256(experiment),
    "config": {**config_lib.plain_json(config), "format": run_lib.FORMAT},
    "config_sha256": run_lib.identity(stored) if stored and found else config_lib.sha256(config),
  }
  check_every = min(run.log_every, run.max_nonfinite)
  if jax.process_index() == 0:
    rows_before = (row for _, row in lines.by_step(folder.metrics))
    goodput.go_on({} if found is None else found.wall, wall_seconds(rows_before))
  began(start)
  clock = time.perf_counter()
  elapsed = lambda: seconds_before + time.perf_counter() - clock
  states = (*method.objective.progress(0), *STATES)

  def save(state: TrainState, teacher_params: Params, position: Position) -> None:
    still_mine()
    jax.block_until_ready(state)  # which is the step's time, and not that of the save
    with goodput.spent("checkpoint"):
      spent = {"seconds": elapsed(), "wall": goodput.seconds()}
      after = stage_starts and int(state.step) >= stage_starts[0]
      store.save(state, made_with | dataclasses.asdict(position) | spent, teacher_params if after else None)

  def stretch(state: TrainState, teacher_params: Params, position: Position) -> TrainState | Row:
    """Train to the end, or to a row of steps that were not finite."""
    start = int(state.step)
    log = MetricsLog(
      folder.path, start, num_steps, config.batch_size, states, progress, store.newest_until,
      method.learning_rate,
    )  # fmt: skip
    with contextlib.ExitStack() as ending:
      ending.callback(log.close)
      best = None if criterion is None else _best_before(folder, store, start, criterion)
      first = start + position.data_offset
      stream = ending.enter_context(
        contextlib.closing(batches(pipeline, first, num_steps - start, run.data_workers))
      )
      placed = (sharding.to_global(batch, experiment.mesh) for batch in stream)
      goodput.enter("steps")
      for step, batch in enumerate(goodput.inputs(placed), start=start + 1):
        with goodput.spent("compile" if step == start + 1 else "steps"):
          state, metrics = program.step(state, batch, key, teacher_params, distance_params)
        goodput.handed(metrics["loss"])
        log.add(metrics)
        ends_early = stopped(step)
        last = step == num_steps or ends_early
        if (step % check_every == 0 or last) and not (ends_early and run.on_skips == "rollback"):
          in_a_row = int(jnp.asarray(metrics["nonfinite_in_a_row"]))
          if in_a_row >= run.max_nonfinite:
            return Row.seen(step, in_a_row, log.health)
        due = [measure for every, measure in measures if step % every == 0 or step == num_steps]
        is_best = False
        if step % run.log_every == 0 or last or due:
          jax.block_until_ready(state)
          evaluated = goodput.spent("evaluation")
          measured = [evaluated(functools.partial(measure, step, state)) for measure in due]
          with goodput.spent("logging"):
            scalars = log.write(step, elapsed(), [*measured, goodput.scalars, position.scalars])
          if criterion is not None and due:
            value = scalars.get(criterion.name)
            is_best = bool(sharding.agreed(criterion.prefers(value, None if best is None else best.value)))
            best = Best(step, scalars[criterion.name]) if is_best else best
          store.check()
        if step in stage_starts:
          state, teacher_params = program.next_stage(state)
        # Before the checkpoint: a run that is killed in between makes them again, and not never.
        for every, hook in hooks:
          if step % every == 0 or step == num_steps:
            jax.block_until_ready(state)
            with goodput.spent("evaluation"):
              hook(step, state)
        if step % run.checkpoint_every == 0 or step in stage_starts or last or is_best:
          in_a_row = int(jnp.asarray(metrics["nonfinite_in_a_row"]))
          store.keep_good(min(log.health.good or step, step - in_a_row))
          store.keep_best(-1 if best is None else best.step)
          log.flush()
          save(state, teacher_params, position)
        if last:
          with goodput.spent("checkpoint"):
            store.settle()
          log.health.end(step)
          break
    return state

  position = Position() if found is None else found.position
  del found
  with _ending(store, workdir):
    while isinstance(end := stretch(state, teacher_params, position), Row):
      del state  # its place is that of the one from before
      end.check(run, position)
      with goodput.spent("restore"):
        before = go_back(experiment, program, store, end.good)
        state = program.create() if before is None else before.state
        if stage_starts:
          again = None if before is None else before.teacher
          teacher_params = program.frozen()[0] if again is None else again
        store.remove_after(int(state.step))
      goodput.undo({} if before is None else before.wall)
      position = position.back(end.step, int(state.step))
      end.tell(int(state.step), position, run.max_rollbacks)
    return end


@contextlib.contextmanager
def _ending(store: CheckpointStore, workdir: epath.PathLike) -> Iterator[contextlib.ExitStack]:
  """Close what is open at the end, the checkpoints last; errors say which of them is good."""
  try:
    with contextlib.ExitStack() as ending:
      ending.callback(store.close)
      yield ending
  except UserError as error:
    expected = f"{error.expected}; {_last_good(store)}"
    raise type(error)(error.field, error.value, expected) from error
  except OSError as error:
    field, said = str(error.filename or workdir), error.strerror or str(error)
    raise UserError(field, said, f"{whole.ROOM}; {_last_good(store)}") from error


def _best_before(
  folder: run_lib.RunFolder, store: CheckpointStore, start: int, criterion: Criterion
) -> Best | None:
  """Return the best checkpoint until a step, which is that of the first process on all of them."""
  rows, steps = lines.by_step(folder.metrics), [step for step in store.steps() if step <= start]
  found = best_of((row for _, row in rows), steps, criterion)
  step = sharding.agreed(-1 if found is None else found.step)
  return None if step < 0 else Best(step, math.nan if found is None else found.value)


def _shapes(rows: Rows, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Return the shapes of the global batch."""
  one = rows.take(np.zeros(1, np.int64))
  return {name: jax.ShapeDtypeStruct((batch_size, *row.shape[1:]), row.dtype) for name, row in one.items()}


def _last_good(store: CheckpointStore) -> str:
  latest = store.latest()
  return (
    "there is no checkpoint yet"
    if latest is None
    else f"the last good checkpoint is {store.folder / str(latest)}"
  )
