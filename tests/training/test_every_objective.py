"""Every objective through the training loop: same curve on 1 and 8 devices, one program for all stages, exact
resume, teacher swaps."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cm_jax.assembly import build, load_model
from cm_jax.errors import UserError
from cm_jax.objectives import OBJECTIVES
from cm_jax.training import loop, sharding
from cm_jax.training.averages.track import read_average
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.program import Program
from tests import tiny
from tests.training.test_train import equal, losses, mesh

KINDS = {
  "edm": tiny.EDM,
  "cd": tiny.CD,
  "ect": tiny.ECT,
  "continuous": tiny.CONTINUOUS,
  "progressive": tiny.PROGRESSIVE,
  "sct": tiny.SCT,
  "scd": {**tiny.SCT, "drift": "teacher"},
}
TAUGHT = ("cd", "progressive", "scd")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher")
  loop.train(build(tiny.config(num_steps=3)), folder, progress=False)
  return str(folder)


def config_of(kind, teacher, **run):
  config = tiny.config(KINDS[kind], **run)
  if kind in TAUGHT:
    config.teacher.path, config.init.path = teacher, "teacher"
  return config


def test_every_objective_is_here():
  assert {section["name"] for section in KINDS.values()} == set(OBJECTIVES)


@pytest.mark.slow  # the quick set trains on 1 and 8 devices in test_train.py
@pytest.mark.parametrize("kind", KINDS)
def test_one_and_eight_devices_train_alike_and_nothing_recompiles(kind, teacher, tmp_path):
  """Invariants 4 and 6; 12 steps cross every stage of these curricula."""
  for data in (1, 8):
    experiment = dataclasses.replace(build(config_of(kind, teacher, num_steps=12)), mesh=mesh(data, 1))
    loop.train(experiment, tmp_path / str(data), progress=False)
  one, eight = losses(tmp_path / "1"), losses(tmp_path / "8")
  assert len(one) == 12 and np.isfinite(one).all()
  np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
  step_fn, state = (program := Program(experiment)).step, program.create()
  batch = sharding.to_global({"image": np.zeros((16, 8, 8, 1), np.uint8)}, experiment.mesh)
  frozen = Program(experiment).frozen()
  for _ in range(12):
    state, _ = step_fn(state, batch, jax.random.key(0), *frozen)
  assert step_fn._cache_size() == 1
  lines = (tmp_path / "8" / "metrics.jsonl").read_text().splitlines()
  stages = [json.loads(line).get("num_scales", json.loads(line).get("stage")) for line in lines]
  if kind in ("progressive", "ect"):
    assert len(set(stages)) > 2


# before, at and after a change of teacher (after steps 2 and 6)
@pytest.mark.slow
@pytest.mark.parametrize("cut", [3, 4, 7])
def test_progressive_distillation_resumes_exactly(cut, teacher, tmp_path):
  run = lambda steps, folder: loop.train(
    build(config_of("progressive", teacher, num_steps=steps)), tmp_path / folder, progress=False
  )
  whole = run(9, "whole")
  run(cut, "parts")
  equal(whole, run(9, "parts"))
  assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_the_student_becomes_the_teacher_and_the_optimiser_starts_afresh(teacher, tmp_path):
  """Stages of M = 4, 2, 1 sampling steps: 2, 4 and 4 training steps."""
  experiment = build(config_of("progressive", teacher, num_steps=10))
  assert experiment.method.objective.needs.stages == (0, 2, 6, 10)
  at_swap = loop.train(
    build(config_of("progressive", teacher, num_steps=6, checkpoint_every=6)), tmp_path, progress=False
  )
  store = CheckpointStore(tmp_path)
  like = {
    "net": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), at_swap.params["net"])
  }
  swapped = store.restore_teacher(6, like, sharding.tree_shardings(like, experiment.mesh))
  store.close()
  equal(swapped["net"], at_swap.params["net"])
  equal(read_average(at_swap.opt_state, "ema"), at_swap.params)
  equal(experiment.method.optimizer.init(at_swap.params), at_swap.opt_state)
  assert int(at_swap.step) == 6
  first = load_model(teacher)
  assert any(
    (np.asarray(a) != np.asarray(b)).any()
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(swapped), strict=True)
  )


def test_a_progressive_student_must_be_its_teachers_kind(teacher):
  config = config_of("progressive", teacher)
  config.network.width = 16
  with pytest.raises(UserError, match=r"config\.network = .*expected the teacher's"):
    build(config)
  config = config_of("progressive", teacher)
  config.noise.sigma_data = 0.7
  with pytest.raises(UserError, match=r"config\.noise\.sigma_data = 0\.7"):
    build(config)


@pytest.mark.slow
def test_sampling_ignores_the_head_of_a_loss(teacher, tmp_path):
  state = loop.train(build(config_of("sct", teacher, num_steps=2)), tmp_path, progress=False)
  assert set(state.params) == {"net", "weighting"}
  assert set(load_model(tmp_path).params) == {"net"}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda c: c.update({"precond": {"name": "boundary"}}),
      r"config\.precond\.name = boundary: expected edm or trigflow",
    ),
    (lambda c: c.objective.update({"guidance": (1.0, 2.0)}), r"config\.data\.conditional = False"),
  ],
)
def test_what_an_objective_cannot_do_is_refused(teacher, change, message):
  config = config_of("scd", teacher)
  change(config)
  with pytest.raises(UserError, match=message):
    build(config)
