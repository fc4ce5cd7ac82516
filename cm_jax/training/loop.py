"""The training loop: data, step, metrics and checkpoints overlapped;
everything it resumes from is in the run folder.

The position in the data, the curriculum and every schedule are functions of the step, so a checkpoint of the
TrainState is all that an exact resume needs.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm_jax import config as config_lib
from cm_jax.data.pipeline import Pipeline, Rows, batches, rows_of
from cm_jax.errors import TrainingStopped, UserError, within
from cm_jax.storage import lines, lock, whole
from cm_jax.storage import run as run_lib
from cm_jax.training import sharding
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.goodput import Goodput, wall_seconds
from cm_jax.training.metrics import MetricsLog
from cm_jax.training.program import Program
from cm_jax.training.resume import resume, teacher_sha256
from cm_jax.training.step import STATES
from cm_jax.types import Experiment, TrainState

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

  Returns:
    The final state.

  Raises:
    UserError: The folder holds another run, or a checkpoint that cannot be read, or was trained on other
      data; another process trains there; the disk is full.
    TrainingStopped: `config.run.max_nonfinite` steps in a row were not finite.
  """
  run_lib.check_entries(workdir)
  with contextlib.ExitStack() as held:
    hold = lambda: held.enter_context(lock.held(run_lib.RunFolder.at(workdir).lock, "workdir", str(workdir)))
    mine = sharding.on_main(hold)
    still_mine = (lambda: None) if mine is None else mine.check
    timed = goodput or Goodput()
    return _train(experiment, workdir, hooks, progress, began, stopped, measures, timed, still_mine)


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

  def save(state: TrainState) -> None:
    still_mine()
    jax.block_until_ready(state)  # which is the step's time, and not that of the save
    with goodput.spent("checkpoint"):
      extra = {**made_with, "seconds": elapsed(), "wall": goodput.seconds()}
      after = stage_starts and int(state.step) >= stage_starts[0]
      store.save(state, extra, teacher_params if after else None)

  states = (*method.objective.progress(0), *STATES)
  with _ending(store, workdir) as ending:
    log = MetricsLog(
      folder.path,
      start,
      num_steps,
      config.batch_size,
      states,
      progress,
      store.newest_until,
      method.learning_rate,
    )
    ending.callback(log.close)
    stream = ending.enter_context(
      contextlib.closing(batches(pipeline, start, num_steps - start, run.data_workers))
    )
    placed = (sharding.to_global(batch, experiment.mesh) for batch in stream)
    goodput.enter("steps")
    for step, batch in enumerate(goodput.inputs(placed), start=start + 1):
      with goodput.spent("compile" if step == start + 1 else "steps"):
        state, metrics = program.step(state, batch, key, teacher_params, distance_params)
      goodput.handed(metrics["loss"])
      log.add(metrics)
      last = step == num_steps or stopped(step)
      if step % check_every == 0 or last:
        _stop_if_diverged(metrics, step, run.max_nonfinite)
      due = [measure for every, measure in measures if step % every == 0 or step == num_steps]
      if step % run.log_every == 0 or last or due:
        jax.block_until_ready(state)
        evaluated = goodput.spent("evaluation")
        measured = [evaluated(functools.partial(measure, step, state)) for measure in due]
        with goodput.spent("logging"):
          log.write(step, elapsed(), [*measured, goodput.scalars])
        store.keep_good(log.health.good)
        store.check()
      if step in stage_starts:
        state, teacher_params = program.next_stage(state)
      # Before the checkpoint: a run that is killed in between makes them again, and not never.
      for every, hook in hooks:
        if step % every == 0 or step == num_steps:
          jax.block_until_ready(state)
          with goodput.spent("evaluation"):
            hook(step, state)
      if step % run.checkpoint_every == 0 or step in stage_starts or last:
        save(state)
      if last:
        with goodput.spent("checkpoint"):
          store.wait()
        log.health.end(step)
        break
  return state


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


def _shapes(rows: Rows, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Return the shapes of the global batch."""
  one = rows.take(np.zeros(1, np.int64))
  return {name: jax.ShapeDtypeStruct((batch_size, *row.shape[1:]), row.dtype) for name, row in one.items()}


def _stop_if_diverged(metrics: dict[str, jax.Array], step: int, limit: int) -> None:
  in_a_row = int(jnp.asarray(metrics["nonfinite_in_a_row"]))
  if in_a_row < limit:
    return
  found = f"not finite for {in_a_row} steps in a row up to step {step}"
  raise TrainingStopped("loss", found, "finite numbers, as a lower learning rate may give")


def _last_good(store: CheckpointStore) -> str:
  latest = store.latest()
  return (
    "there is no checkpoint yet"
    if latest is None
    else f"the last good checkpoint is {store.folder / str(latest)}"
  )
