"""Training as a whole: same curve on any devices (invariant 4), exact resume (5), no recompilation (6),
non-finite steps (7)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from cm_jax.assembly import build
from cm_jax.assembly.resume import reconcile
from cm_jax.errors import TrainingStopped, UserError
from cm_jax.storage import run as run_lib
from cm_jax.training import layout, loop, sharding
from cm_jax.training import program as program_lib
from cm_jax.training.averages.track import read_average, split_averages
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.program import Program
from cm_jax.training.step import make_train_step
from tests import tiny

REPO = Path(__file__).parents[2]


def mesh(data: int, fsdp: int) -> jax.sharding.Mesh:
  return jax.make_mesh(
    (data, fsdp), sharding.AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: data * fsdp]
  )


def experiment_of(config, **changes):
  return dataclasses.replace(build(config), **changes)


def abstract(experiment):
  program = Program(experiment)
  return program.shapes, program.shardings


def losses(workdir: Path) -> list[float]:
  return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def equal(a, b) -> None:
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def traced(monkeypatch):
  """One entry each time that a train step was traced, which for a large network takes longest of all."""
  times = []

  def counted(*args):
    step = make_train_step(*args)
    return lambda *arguments: (times.append(1), step(*arguments))[1]

  monkeypatch.setattr(program_lib, "make_train_step", counted)
  return times


@pytest.mark.slow
def test_one_and_eight_devices_and_fsdp_train_alike(tmp_path, monkeypatch, traced):
  monkeypatch.setattr(layout, "LARGE_LEAF", 64)  # so that even the toy's leaves are split
  curves = {}
  for data, fsdp in ((1, 1), (8, 1), (2, 4)):
    experiment = experiment_of(tiny.config(tiny.CT, num_steps=20), mesh=mesh(data, fsdp))
    state = loop.train(experiment, tmp_path / f"{data}x{fsdp}", progress=False)
    curves[data, fsdp] = losses(tmp_path / f"{data}x{fsdp}")
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert bool(split) == (fsdp > 1)
  assert len(curves[1, 1]) == 20
  assert len(traced) == 3
  for curve in curves.values():
    np.testing.assert_allclose(curve, curves[1, 1], rtol=1e-4)


@pytest.mark.slow
def test_accumulation_does_not_change_the_curve(tmp_path):
  for parts in (1, 2):
    config = tiny.config(tiny.CT)
    config.accumulation = parts
    loop.train(build(config), tmp_path / str(parts), progress=False)
  np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-5)


@pytest.mark.slow
def test_scanned_accumulation_equals_unrolled():
  from cm_jax.training import step as step_lib

  experiment = build(tiny.config(tiny.CT))
  ready = experiment.method.preprocess({"image": jnp.zeros((16, 8, 8, 1), jnp.uint8)}, jax.random.key(1))
  draws = experiment.method.objective.draw(jax.random.key(2), ready, jnp.zeros([], jnp.int32))
  parts = step_lib.split_microbatches((ready, draws), 4)
  total = lambda part: {
    "x": part[0]["image"].sum(),
    "t": part[1].t.mean(),
    "u": jax.random.uniform(part[1].key),
  }
  unrolled = step_lib.accumulate(total, parts)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "default_backend", lambda: "tpu")
    scanned = step_lib.accumulate(total, parts)
  chex.assert_trees_all_close(unrolled, scanned, rtol=1e-6)


@pytest.mark.parametrize(
  "objective", [pytest.param(None, marks=pytest.mark.slow), tiny.CT], ids=["edm", "ct"]
)
def test_resume_is_exact(tmp_path, objective, traced):
  whole = loop.train(build(tiny.config(objective, num_steps=6)), tmp_path / "whole", progress=False)
  loop.train(build(tiny.config(objective, num_steps=3)), tmp_path / "parts", progress=False)
  resumed = loop.train(build(tiny.config(objective, num_steps=6)), tmp_path / "parts", progress=False)
  assert int(resumed.step) == 6
  equal(whole, resumed)  # params, optimiser, every average
  assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
  assert len(traced) == 3  # a run's check traces the step, and its first step finds that done


def test_resume_on_another_mesh(tmp_path):
  config = tiny.config(tiny.CT, num_steps=3)
  before = loop.train(experiment_of(config, mesh=mesh(8, 1)), tmp_path, progress=False)
  after = loop.train(experiment_of(config, mesh=mesh(1, 1)), tmp_path, progress=False)
  equal(before, after)


def test_a_finished_run_is_left_alone(tmp_path):
  loop.train(build(tiny.config(num_steps=3)), tmp_path, progress=False)
  stamp = lambda: {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.is_file()}
  before = stamp()
  loop.train(build(tiny.config(num_steps=3)), tmp_path, progress=False)
  assert stamp() == before


def run_cli(
  *arguments: str, program: tuple[str, ...] = ("-m", "cm_jax"), **variables: str
) -> subprocess.Popen:
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **variables}
  return subprocess.Popen(
    [sys.executable, *program, *arguments],
    cwd=REPO,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def write_config(path: Path, **run: int) -> str:
  settings = ", ".join(f"{key}={value}" for key, value in run.items())
  lines = [
    "import sys",
    f"sys.path.insert(0, {str(REPO)!r})",
    "from tests import tiny",
    "",
    "def get_config():",
  ]
  path.write_text("\n".join([*lines, f"  return tiny.config(tiny.CT, {settings})", ""]))
  return f"--config={path}"


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  config = write_config(tmp_path / "config.py", num_steps=20)
  one = run_cli("train", config, "--noprogress", f"--workdir={tmp_path / 'one'}")
  assert one.wait(120) == 0, one.stdout.read()
  job = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:29517", "JAX_NUM_PROCESSES": "2"}
  two = [
    run_cli(
      "train",
      config,
      "--noprogress",
      f"--workdir={tmp_path / 'two'}",
      "--config.run.num_samples=4",
      JAX_PROCESS_ID=str(i),
      **job,
    )
    for i in range(2)
  ]
  for process in two:
    assert process.wait(180) == 0, process.stdout.read()
  assert len(losses(tmp_path / "two")) == 20
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
  assert list((tmp_path / "two" / "samples").glob("*.png"))


def test_the_curriculum_does_not_recompile():
  experiment = build(tiny.config(tiny.CT))
  step_fn, state, key = (program := Program(experiment)).step, program.create(), jax.random.key(0)
  batch = sharding.to_global({"image": np.zeros((16, 8, 8, 1), np.uint8)}, experiment.mesh)
  seen = []
  for _ in range(13):
    state, metrics = step_fn(state, batch, key, None, None)
    seen.append(int(metrics["num_scales"]))
  assert len(set(seen)) > 3
  assert seen == sorted(seen)
  assert step_fn._cache_size() == 1


def poisoned_run(experiment, bad_steps, num_steps):
  """Step by hand, with a nan image at `bad_steps`; yield (state, metrics) after each step."""
  step_fn, state, key = (program := Program(experiment)).step, program.create(), jax.random.key(0)
  for step in range(num_steps):
    image = np.full((16, 8, 8, 1), np.nan if step in bad_steps else 0.1, np.float32)
    state, metrics = step_fn(state, sharding.to_global({"image": image}, experiment.mesh), key, None, None)
    yield jax.device_get(state), metrics


def test_a_nonfinite_step_reaches_nothing_and_is_counted():
  states, counts = [], []
  for state, metrics in poisoned_run(build(tiny.config(tiny.CT)), bad_steps={2, 3}, num_steps=5):
    states.append(state)
    counts.append((int(metrics["nonfinite_in_a_row"]), int(metrics["nonfinite_total"])))
  assert counts == [(0, 0), (0, 0), (1, 1), (2, 2), (0, 2)]
  for skipped in (2, 3):
    equal(states[1].params, states[skipped].params)
    for name in ("ema", "target"):
      equal(read_average(states[1].opt_state, name), read_average(states[skipped].opt_state, name))
  assert [int(state.step) for state in states] == [1, 2, 3, 4, 5]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[4].params))
  assert any(
    (a != b).any()
    for a, b in zip(jax.tree.leaves(states[3].params), jax.tree.leaves(states[4].params), strict=True)
  )


@pytest.mark.slow
def test_gradients_that_overflow_in_the_norm_are_skipped():
  experiment = build(tiny.config())
  state = Program(experiment).create()
  huge = jax.tree.map(lambda p: jnp.full(p.shape, 1e30), state.params)
  updates, opt_state = experiment.method.optimizer.update(
    huge, state.opt_state, state.params, step=state.step, value=jnp.ones([])
  )
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(opt_state))


@pytest.mark.slow
def test_nan_to_zero_is_an_option():
  config = tiny.config()
  config.optimizer.nonfinite = "zero"
  for state, _ in poisoned_run(build(config), bad_steps={1}, num_steps=3):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@dataclasses.dataclass(frozen=True)
class PoisonedSource:
  """Latents that turn to nan from row `good` on."""

  good: int = 0
  fingerprint: str = "poisoned"
  num_classes: int = 0

  def __len__(self) -> int:
    return 64

  def __getitem__(self, index: int):
    return {"image": np.full((8, 8, 1), 0.1 if index < self.good else np.nan, np.float32), "label": -1}


@pytest.mark.slow
def test_training_stops_after_a_row_of_nonfinite_steps(tmp_path):
  loop.train(experiment_of(tiny.config(num_steps=3), source=PoisonedSource(64)), tmp_path, progress=False)
  config = tiny.config(num_steps=30, max_nonfinite=4)
  with pytest.raises(TrainingStopped) as stopped:
    loop.train(experiment_of(config, source=PoisonedSource(0)), tmp_path, progress=False)
  assert "4 steps in a row up to step 7" in str(stopped.value)
  # Step 6 was saved inside the row; its parameters are those of step 3.
  assert str(tmp_path / "checkpoints" / "6") in str(stopped.value)
  like = jax.eval_shape(build(config).method.init, jax.random.key(0))
  equal(*(CheckpointStore(tmp_path).restore_params(step, like, "params") for step in (3, 6)))


@pytest.mark.slow
def test_skipped_steps_are_said(tmp_path, capsys):
  loop.train(experiment_of(tiny.config(num_steps=6), source=PoisonedSource(60)), tmp_path, progress=False)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  skipped = rows[-1]["nonfinite_total"]
  assert skipped and f"{skipped:.0f} of 6 steps" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_other_data_is_refused_unless_allowed(tmp_path):
  class Other(PoisonedSource):
    pass

  loop.train(experiment_of(tiny.config(num_steps=3), source=PoisonedSource(64)), tmp_path, progress=False)
  other = Other(64, fingerprint="another")
  with pytest.raises(UserError, match=r"config\.data\.source"):
    loop.train(experiment_of(tiny.config(num_steps=6), source=other), tmp_path, progress=False)
  allowed = tiny.config(num_steps=6)
  allowed.run.on_other_data = "allow"
  assert int(loop.train(experiment_of(allowed, source=other), tmp_path, progress=False).step) == 6


@pytest.mark.slow
def test_another_config_is_refused_but_not_another_run_or_mesh(tmp_path):
  first = tiny.config(num_steps=3)
  loop.train(build(first), tmp_path, progress=False)
  changed = tiny.config(num_steps=6)
  changed.optimizer.learning_rate = 1.0
  with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate = 1\.0: expected 0\.003"):
    loop.train(build(changed), tmp_path, progress=False)
  longer = tiny.config(num_steps=4)
  longer.mesh.fsdp = 2
  assert int(loop.train(build(longer), tmp_path, progress=False).step) == 4


@pytest.mark.slow
def test_checkpoints_hold_averages_apart_and_prune_the_oldest(tmp_path):
  same = {"name": "karras", "scales": {"name": "constant", "value": 4}}  # N(k) that grew would raise the loss
  objective = {**tiny.CT, "pairs": same, "target": {"name": "ema", "mu": 0.9}}
  config = tiny.config(objective, num_steps=6, checkpoint_every=1, keep_checkpoints=2, keep_every=3)
  state = loop.train(build(config), tmp_path, progress=False)
  store = CheckpointStore(tmp_path)
  assert store.steps() == [3, 5, 6]
  assert {path.name for path in (tmp_path / "checkpoints" / "6").iterdir()} >= {"state", "averages", "extra"}
  like = jax.eval_shape(lambda: state.params)
  equal(store.restore_params(6, like, "ema"), read_average(state.opt_state, "ema"))
  equal(store.restore_params(6, like, "params"), state.params)
  with pytest.raises(UserError, match=r"average = emma: expected 'ema' \(did you mean it\?\)"):
    store.restore_params(6, like, "emma")
  assert split_averages(state.opt_state)[1].keys() == {"ema", "target"}


@pytest.mark.slow
def test_a_distilled_run_needs_no_more_than_its_folder(tmp_path, traced):
  loop.train(build(tiny.config(num_steps=3)), tmp_path / "teacher", progress=False)
  config = tiny.config(tiny.CD)
  config.teacher.path, config.init.path = str(tmp_path / "teacher"), "teacher"
  experiment = build(config)
  assert experiment.config.teacher.step == 3  # what "the newest" meant when the run began
  whole = loop.train(experiment, tmp_path / "cd", progress=False)
  stored = run_lib.read_config(tmp_path / "cd")
  again = loop.train(build(reconcile(config, stored)), tmp_path / "cd", progress=False)
  equal(whole, again)
  assert len(traced) == 2


def test_students_start_from_the_teacher_or_an_average(tmp_path):
  teacher = loop.train(build(tiny.config(num_steps=3)), tmp_path, progress=False)
  config = tiny.config(tiny.CT)
  config.init.path = str(tmp_path)
  state = Program(build(config)).create()
  equal(state.params, read_average(teacher.opt_state, "ema"))
  equal(read_average(state.opt_state, "target"), state.params)
  assert int(state.step) == 0


def test_a_hook_that_is_cut_off_is_called_again_by_the_resumed_run(tmp_path):
  """The checkpoint of a step comes after its hooks."""
  experiment, called = build(tiny.config(num_steps=6)), []

  def hook(step, state):
    called.append(step)
    if called == [3]:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    loop.train(experiment, tmp_path, [(3, hook)], progress=False)
  loop.train(experiment, tmp_path, [(3, hook)], progress=False)
  assert called == [3, 3, 6]
