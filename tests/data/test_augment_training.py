"""EDM's augmentation through the train step: all are told, nothing recompiles, misfits are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.data.augment import Augment, random_flip
from cm_jax.data.preprocess import Preprocess
from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.diffusion.pixels import normalize
from cm_jax.errors import UserError
from cm_jax.objectives import OBJECTIVES
from cm_jax.training import loop, sharding
from cm_jax.training.program import Program
from cm_jax.types import Condition, Context
from tests import tiny
from tests.compiling import quick_jit
from tests.training.test_train import mesh

KINDS = {
  "edm": tiny.EDM,
  "cd": tiny.CD,
  "continuous_ct": tiny.CONTINUOUS,
  "continuous_cd": {**tiny.CONTINUOUS, "drift": "teacher"},
  "progressive": tiny.PROGRESSIVE,
  "scd": {**tiny.SCT, "drift": "teacher"},
}
TAUGHT = ("cd", "continuous_cd", "progressive", "scd")
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)}


def augmented(objective: dict | None = None, p: float = 1.0, **fields: float) -> ml_collections.ConfigDict:
  config = tiny.config(objective, num_steps=1)
  config.data.augment = {"p": p, **fields}
  config.network = {"name": "toy", "width": 8, "augment_dim": 9}
  return config


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
  """Runs of one step: with EDM's labels of 9 numbers, with labels of 7, with none."""
  folder = tmp_path_factory.mktemp("teachers")
  configs = {"nine": augmented(), "seven": augmented(rotate_frac=0.0), "none": tiny.config(num_steps=1)}
  configs["seven"].network.augment_dim = 7
  for name, config in configs.items():
    loop.train(build(config), folder / name, progress=False)
  return {name: str(folder / name) for name in configs}


def config_of(kind: str, teachers: dict[str, str]) -> ml_collections.ConfigDict:
  config = augmented(KINDS[kind])
  if kind in TAUGHT:
    config.teacher.path = config.init.path = teachers["nine"]
  return config


def test_every_objective_is_here():
  assert {section["name"] for section in KINDS.values()} == set(OBJECTIVES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_learns_from_the_label_in_one_program_on_any_devices(kind, teachers):
  """The label's weights get a gradient in every row; three steps are one trace; 1 and 8 devices agree."""
  built, found = build(config_of(kind, teachers)), {}
  for devices in (1, 8):
    experiment = dataclasses.replace(built, mesh=mesh(devices, 1))
    program = Program(experiment)
    step, state, frozen = program.step, program.create(), program.frozen()
    before = np.asarray(state.params["net"]["map_augment"]["weight"])
    losses = []
    for _ in range(3):
      state, metrics = step(state, sharding.to_global(BATCH, experiment.mesh), jax.random.key(0), *frozen)
      losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    found[devices] = losses
  moved = np.asarray(state.params["net"]["map_augment"]["weight"]) - before
  assert moved.shape[0] == 9 and (np.abs(moved).max(axis=1) > 0).all()
  np.testing.assert_allclose(found[8], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TAUGHT)
def test_a_teacher_is_told_what_the_student_is(kind, teachers):
  """The weights that the teacher reads the label with change the loss; without a label they do not."""
  experiment = build(config_of(kind, teachers))
  ready, teacher = experiment.method.preprocess(BATCH, jax.random.key(1)), experiment.teacher
  draws = experiment.method.objective.draw(jax.random.key(2), ready, jnp.array(3))
  student = jax.tree.map(jnp.asarray, experiment.initial_params)
  net = teacher.params["net"]
  other = {"net": {**net, "map_augment": {"weight": net["map_augment"]["weight"] + 0.5}}}

  @quick_jit
  def loss(teacher_params, batch):
    context = Context(experiment.method.student, teacher.preconditioned, student, teacher_params)
    return experiment.method.objective.loss(student, context, batch, draws, jnp.array(3)).per_example

  assert bool((loss(teacher.params, ready) != loss(other, ready)).all())
  plain = {"image": ready["image"]}
  np.testing.assert_array_equal(loss(teacher.params, plain), loss(other, plain))


@pytest.mark.slow
@pytest.mark.xdist_group("teachers")
@pytest.mark.parametrize("kind", ["cd", "scd"])
def test_a_teacher_without_the_label_will_do(kind, teachers):
  config = config_of(kind, teachers)
  config.teacher.path, config.init.path = teachers["none"], ""
  experiment = build(config)
  program, batch = Program(experiment), sharding.to_global(BATCH, experiment.mesh)
  _, metrics = program.step(program.create(), batch, jax.random.key(0), *program.frozen())
  assert np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
def test_micro_batches_take_their_own_labels():
  losses = []
  for parts in (1, 2):
    config = augmented(tiny.CT)
    config.accumulation = parts
    experiment = build(config)
    step, state = (program := Program(experiment)).step, program.create()
    for _ in range(2):
      state, metrics = step(state, sharding.to_global(BATCH, experiment.mesh), jax.random.key(0), None, None)
    losses.append(float(metrics["loss"]))
  assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_what_preprocess_gives():
  """Without augmentation the bits of old; with it images and labels of the same draws."""
  key, image = jax.random.key(5), normalize(BATCH["image"])
  plain = Preprocess(True, False)(BATCH, key)
  assert set(plain) == {"image"}
  np.testing.assert_array_equal(plain["image"], random_flip(image, key))
  assert set(build(tiny.config()).method.preprocess(BATCH, key)) == {"image"}
  ready = Preprocess(False, True, Augment(p=1.0))({**BATCH, "label": np.arange(16)}, key)
  assert set(ready) == {"image", "augment_label", "label"} and ready["augment_label"].shape == (16, 9)
  assert float(jnp.abs(ready["image"]).max()) <= 1 and not bool((ready["image"] == image).all())
  again = Preprocess(False, False, Augment(p=1.0))(BATCH, jax.random.key(6))
  assert not bool((again["augment_label"] == ready["augment_label"]).all(axis=1).any())
  mirror = Augment(p=0.5, yflip=0, scale=0, rotate_frac=0, aniso=0, translate_frac=0)
  mirrored = Preprocess(False, False, mirror)(BATCH, key)
  told = np.asarray(mirrored["augment_label"][:, 0]) == 1
  np.testing.assert_array_equal(
    mirrored["image"], np.where(told[:, None, None, None], image[:, :, ::-1], image)
  )
  flipped = [bool((a == b).all()) for a, b in zip(plain["image"], image[:, :, ::-1], strict=True)]
  assert flipped != told.tolist()


@pytest.mark.slow
def test_latents_are_drawn_from_keys_of_their_own():
  """Pinned: a resumed run must draw the same latents."""
  rng, key = np.random.default_rng(1), jax.random.key(7)
  mean, std = (rng.uniform(0.1, 1, (16, 4, 4, 2)).astype(np.float32) for _ in range(2))
  z = per_sample_noise(jax.random.fold_in(key, 2**32 - 2), jnp.arange(16))(0, mean.shape)
  ready = Preprocess(False, False)({"image": mean, "std": std}, key)
  np.testing.assert_array_equal(ready["image"], mean + std * z)
  label = Preprocess(False, False, Augment())({"image": mean, "std": std}, key)["augment_label"]
  np.testing.assert_array_equal(label, Augment()(mean, jax.random.fold_in(key, 2**32 - 1))[1])


@pytest.mark.slow
def test_no_label_is_the_label_of_a_plain_image(teachers):
  experiment = build(config_of("edm", teachers))
  params = experiment.method.init(jax.random.key(0))
  x, sigma = normalize(jnp.asarray(BATCH["image"])), jnp.linspace(0.1, 3.0, 16)
  told = lambda label: experiment.method.student(params, Condition(augment_label=label))(x, sigma)
  without = told(None)
  np.testing.assert_array_equal(told(jnp.zeros((16, 9))), without)
  assert bool((told(jnp.ones((16, 9))) != without).any())


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"network.augment_dim": 7}, r"config\.network\.augment_dim = 7: expected 9"),
    ({"network": {"name": "toy"}}, r"config\.network\.augment_dim = 0: expected 9"),
    (
      {"network": {"name": "dit", "augment_dim": 9}},
      r"config\.network\.augment_dim = 9: expected 0: DiT takes no such label",
    ),
    ({"network": {"name": "openai_unet", "augment_dim": 9}}, r"config\.network\.augment_dim = 9: expected 0"),
    ({"data.augment": {"p": 0.1, "rotate_frac": 0.0}}, r"config\.network\.augment_dim = 9: expected 7"),
    ({"data.flip": True}, r"config\.data\.flip = True: expected False"),
    ({"data.augment": {"p": 2.0}}, r"config\.data\.augment\.p = 2\.0: expected a number in \[0, 1\]"),
    (
      {"data.augment": {"xfilp": 1.0}},
      r"config\.data\.augment\.xfilp = 1\.0: expected 'xflip' \(did you mean it\?\)",
    ),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  config = augmented().unlock()
  for path, value in change.items():
    *sections, key = path.split(".")
    section = config
    for name in sections:
      section = section[name]
    section[key] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
  with pytest.raises(UserError, match=message):
    build(config)


@pytest.mark.slow
def test_a_teacher_with_another_label_is_refused(teachers):
  config = config_of("cd", teachers)
  config.teacher.path, config.init.path = teachers["seven"], ""
  with pytest.raises(
    UserError,
    match=r"config\.data\.augment = .*expected transforms with a label of 7 numbers, as the teacher",
  ):
    build(config)


@pytest.mark.slow
def test_mirrored_data_may_be_augmented_without_xflip():
  config = augmented(xflip=0.0)
  config.data.flip, config.network.augment_dim = True, 8
  assert set(build(config).method.preprocess(BATCH, jax.random.key(0))) == {"image", "augment_label"}
