"""Every shipped config builds and takes a step; every registry entry can be chosen; keys that nobody knows
are refused."""

from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from cm_jax import config as config_lib
from cm_jax.assembly import build, call, construct, load_model, steps
from cm_jax.assembly.resume import reconcile
from cm_jax.diffusion.curriculum import CURRICULA
from cm_jax.errors import UserError
from cm_jax.storage.weights import info_of, save_weights
from cm_jax.training import loop, sharding
from cm_jax.training.program import Program
from tests import tiny
from tests.configs.rows import NAMES, config_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
  """Weights of the digits teacher's network, for the configs that need one."""
  return str(diffusion_weights(tmp_path_factory.mktemp("teacher") / "edm", config_of("digits_edm")))


QUICK = ("digits_edm",)
DIGITS = [
  pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
  for name in NAMES
  if name.startswith("digits_")
]


@pytest.mark.parametrize("name", DIGITS)
def test_shipped_digits_configs_build_and_take_a_step(name, teacher):
  config = config_of(name)
  if config.objective.get("drift") == "teacher" or config.init.path == "teacher":
    config.teacher.path = teacher
  experiment = build(config)
  program = Program(experiment)
  shapes = program.shapes
  batch = {"image": jax.ShapeDtypeStruct((config.batch_size, 8, 8, 1), np.uint8)}
  frozen = program.frozen()
  state, metrics = jax.eval_shape(program.step, shapes, batch, jax.random.key(0), *frozen)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )
  assert metrics["loss"].shape == ()


def diffusion_weights(path: Path, config: ml_collections.ConfigDict) -> Path:
  """Write a weights folder of zeros for the network of a config."""
  if not path.exists():
    experiment = build(config)
    params = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(experiment.method.init, jax.random.key(0))
    )
    info = {**info_of(experiment.model(params)), "source_sha256": "", "licence": ""}
    save_weights(path, {"net": params["net"]}, info)
  return path


def test_a_config_survives_json_and_is_equal_when_built_again():
  first = build(tiny.config(tiny.CT))
  again = build(ml_collections.ConfigDict(config_lib.plain_json(first.config)))
  assert config_lib.sha256(first.config) == config_lib.sha256(again.config)
  assert first.method.objective == again.method.objective
  assert first.method.sampler == again.method.sampler


def test_the_hash_leaves_out_run_and_mesh_only():
  config = tiny.config()
  digest = config_lib.sha256(config)
  config.run.num_steps, config.mesh.fsdp = 7, 2
  assert config_lib.sha256(config) == digest
  config.seed = 1
  assert config_lib.sha256(config) != digest


@pytest.mark.parametrize(
  "path, value, expected",
  [
    ("batchsize", 3, "config.batchsize = 3: expected 'batch_size' (did you mean it?)"),
    (
      "optimizer.learningrate",
      1.0,
      "config.optimizer.learningrate = 1.0: expected 'learning_rate' (did you mean it?)",
    ),
    ("network.widht", 3, "config.network.widht = 3: expected 'width' (did you mean it?)"),
    (
      "objective.levels.P_maen",
      3.0,
      "config.objective.levels.P_maen = 3.0: expected 'P_mean' (did you mean it?)",
    ),
    ("data.surce", "x", "config.data.surce = x: expected 'source' (did you mean it?)"),
    ("run.steps", 3, "config.run.steps = 3"),
    ("averages.ema.half_life", 3, "config.averages.ema.half_life = 3"),
    ("averages.target", {"name": "constant", "mu": 0.5}, "config.averages"),
    ("averages", {}, "config.averages"),
    ("seed", -1, "config.seed = -1"),
    ("noise.sigma", 1.0, "config.noise.sigma = 1.0"),
    ("sampler", {"name": "multistep", "sigmas": (0.1, 80.0)}, "sampler.sigmas = 0.1,80"),
    ("sampler", {"name": "heun", "steps": 3}, "config.sampler.steps = 3"),
    ("precond", {"nmae": "edm"}, "config.precond.name = None"),
    ("objective", {"name": "consistency"}, "config.objective.pairs = : expected set"),
  ],
)
def test_what_nobody_knows_is_an_error(path, value, expected):
  config = tiny.config().unlock()
  *sections, key = path.split(".")
  section = config
  for name in sections:
    section = section[name]
  section[key] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
  with pytest.raises(UserError) as refused:
    build(config)
  assert expected in str(refused.value)


def test_a_missing_key_is_an_error():
  config = tiny.config().unlock()
  del config.batch_size
  with pytest.raises(UserError, match=r"config\.batch_size"):
    build(config)


def test_durations_are_in_images():
  curriculum = construct(
    CURRICULA, {"name": "stages", "stage_images": 100, "num_stages": 3}, "x", batch_size=10
  )
  assert curriculum.starts == (0, 10, 20)
  with pytest.raises(UserError, match="x.stage_images = -1"):
    construct(CURRICULA, {"name": "stages", "stage_images": -1, "num_stages": 3}, "x")
  with pytest.raises(UserError, match="x.stage_steps = 3"):
    construct(CURRICULA, {"name": "stages", "stage_steps": 3, "num_stages": 3}, "x")
  assert steps(0, 8) == 0


def test_a_field_of_the_wrong_type_is_an_error():
  with pytest.raises(UserError, match="x = "):
    call(lambda a: a + 1, {"a": "text"}, "x")


@pytest.mark.slow
def test_models_load_from_a_run(tmp_path):
  state = loop.train(build(tiny.config(num_steps=3)), tmp_path, progress=False)
  raw = load_model(tmp_path, average="params")
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), raw.params, state.params
  )
  assert raw.provenance["step"] == 3
  assert raw.image_shape == (8, 8, 1)
  assert raw.denoiser()(np.zeros((2, 8, 8, 1), np.float32), np.ones(2, np.float32)).shape == (2, 8, 8, 1)


def test_stored_config_fills_what_the_given_one_leaves_open():
  stored = config_lib.plain_json(tiny.config())
  stored["data"]["image_shape"], stored["teacher"]["step"] = [8, 8, 1], 40
  merged = reconcile(tiny.config(), stored)
  assert tuple(merged.data.image_shape) == (8, 8, 1)
  assert merged.teacher.step == 40


@pytest.mark.slow
def test_conditional_training(tmp_path):
  config = tiny.config(tiny.CT, num_steps=2)
  config.data.conditional = True
  experiment = build(config)
  assert experiment.method.num_classes == 10
  loop.train(experiment, tmp_path, progress=False)
  model = load_model(tmp_path)
  x, sigma = np.ones((2, 8, 8, 1), np.float32), np.ones(2, np.float32)
  zero, one = (model.denoiser(np.full(2, label, np.int32))(x, sigma) for label in (0, 1))
  assert np.abs(np.asarray(zero) - np.asarray(one)).max() > 0


def test_batches_divide_over_devices_and_microbatches():
  sharding.check_batch_size(16, 2, 8)
  with pytest.raises(
    UserError, match=r"batch_size = 20: expected a multiple of 8 devices x 1 micro-batches, such as 16 or 24"
  ):
    sharding.check_batch_size(20, 1, 8)
