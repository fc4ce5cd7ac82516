"""Invariant 8: a sample depends on (seed, i) only, whatever the batch and the devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.diffusion.precond import Boundary
from cm_jax.errors import UserError
from cm_jax.networks import as_net, init_params
from cm_jax.networks.toy import ToyNet
from cm_jax.sampling.generate import balanced_labels, generate, generate_all, make_generator
from cm_jax.sampling.multistep import Multistep
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian
from tests.sampling.models import model_of

NOISE, SHAPE, NUM_CLASSES, SEED = NoiseRange(), (8, 8, 1), 3, 7
TOY = ToyNet(img_resolution=8, in_channels=1, out_channels=1, label_dim=NUM_CLASSES)
SAMPLER = Multistep(NOISE, (80.0, 0.8))
MODEL = model_of(Preconditioned(as_net(TOY), Boundary(NOISE)), SHAPE, num_classes=NUM_CLASSES)
INDICES = np.arange(13)


@pytest.fixture(scope="module")
def params():
  return {
    "net": jax.tree.map(
      lambda leaf: 3 * leaf, quick_jit(lambda: init_params(TOY, jax.random.key(0), SHAPE))()
    )
  }


@pytest.fixture(scope="module")
def generator():
  return make_generator(MODEL, SAMPLER)


def mesh(devices: int) -> jax.sharding.Mesh:
  return jax.make_mesh((devices, 1), ("data", "fsdp"), devices=jax.devices()[:devices])


def images(generator, params, indices, batch_size, devices=None, seed=SEED) -> np.ndarray:
  where = mesh(devices) if devices else None
  batches = list(generate(generator, params, indices, NUM_CLASSES, batch_size, where, seed=seed))
  assert all(batch.dtype == np.uint8 and batch.shape[1:] == SHAPE for batch in batches)
  return np.concatenate(batches)


@pytest.fixture(scope="module")
def reference(generator, params):
  return images(generator, params, INDICES, 8)


def test_images_depend_on_seed_and_number(generator, params, reference):
  """The samples are varied, not saturated: what the tests below compare could differ."""
  assert reference.shape == (13, *SHAPE)
  assert len({image.tobytes() for image in reference}) == 13
  assert ((reference > 0) & (reference < 255)).mean() > 0.3
  other = images(generator, params, INDICES, 8, seed=SEED + 1)
  assert np.abs(other.astype(int) - reference).mean() > 10


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "devices"), [(5, None), (13, None), (8, 8), (16, 2)])
def test_a_sample_is_the_same_within_a_level_in_any_batch_on_any_number_of_devices(
  generator, params, reference, batch_size, devices
):
  """Invariant 8: within 1 of 255."""
  got = images(generator, params, INDICES, batch_size, devices)
  assert np.abs(got.astype(int) - reference).max() <= 1


def test_a_sample_is_bit_equal_at_the_same_batch_size(generator, params, reference):
  """Invariant 8: wherever it stands and whoever stands beside it, in a full batch or a padded one."""
  again = images(generator, params, INDICES, 8)
  backwards = images(generator, params, INDICES[::-1], 8)
  others = images(generator, params, [100, 3, 12, 200], 8)
  assert (again == reference).all()
  assert (backwards[::-1] == reference).all()
  assert (others[1:3] == reference[[3, 12]]).all()


@pytest.mark.slow
def test_the_noise_is_bit_equal_on_any_number_of_devices():
  draw = jax.jit(
    lambda indices: per_sample_noise(jax.random.key(SEED), indices)(2, (indices.shape[0], *SHAPE))
  )
  alone = np.concatenate([draw(jnp.array([i])) for i in (0, 5, 15)])
  for devices in (1, 8):
    rows = jax.sharding.NamedSharding(mesh(devices), jax.sharding.PartitionSpec(("data", "fsdp")))
    spread = jax.device_put(np.arange(16), rows)
    together = draw(spread)
    assert len(together.sharding.device_set) == devices
    assert (np.asarray(together)[[0, 5, 15]] == alone).all()


@pytest.mark.parametrize(
  ("count", "batch_size", "devices", "sizes"),
  [
    (13, 8, None, [8, 5]),
    (8, 8, None, [8]),
    (3, 8, None, [3]),
    (0, 8, None, []),
    (13, 5, 2, [6, 6, 1]),
    (9, 1, 8, [8, 1]),
  ],
)
def test_batches_have_one_shape_inside_and_the_right_number_outside(count, batch_size, devices, sizes):
  seen = []

  def generator(params, seed, indices, label):
    assert seed == 5 and seed.dtype == np.uint32
    seen.append((np.asarray(indices), np.asarray(label)))
    return jnp.broadcast_to(indices[:, None, None, None], (len(indices), *SHAPE)).astype(jnp.uint8)

  where = mesh(devices) if devices else None
  batches = list(generate(generator, None, range(20, 20 + count), NUM_CLASSES, batch_size, where, seed=5))
  assert [len(batch) for batch in batches] == sizes
  assert [int(image[0, 0, 0]) for batch in batches for image in batch] == list(range(20, 20 + count))
  assert len({indices.shape for indices, _ in seen}) <= 1
  assert all((label == indices % NUM_CLASSES).all() for indices, label in seen)


def test_one_program_makes_all_batches_of_all_seeds(params):
  generator = make_generator(MODEL, SAMPLER)
  for seed in (0, 1, 2**32 - 1):
    images(generator, params, INDICES, 8, seed=seed)
  assert generator._cache_size() == 1


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1])
def test_the_key_of_a_traced_seed_is_that_of_the_number(seed):
  traced = jax.jit(lambda seed: jax.random.key_data(jax.random.key(seed)))(np.uint32(seed))
  words = np.array([0, seed], np.uint32)  # what `jax.random.key(seed)` is of a number that fits
  np.testing.assert_array_equal(traced, words)
  if seed < 2**31:
    np.testing.assert_array_equal(traced, jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize(
  ("argument", "value"), [("seed", -1), ("seed", 2**32), ("seed", True), ("batch_size", 0)]
)
def test_a_seed_that_is_none_is_refused(generator, params, argument, value):
  with pytest.raises(UserError, match=f"^{argument} = "):
    next(generate(generator, params, [0], NUM_CLASSES, **{argument: value}))


def test_all_samples_are_those_of_the_batches_whoever_draws_them(generator, params, reference, monkeypatch):
  seen = []
  model = dataclasses.replace(MODEL, params=params)
  drawn = generate_all(generator, model, 13, 8, mesh(1), SEED, seen.append)
  np.testing.assert_array_equal(drawn, reference)
  assert seen == [8, 5]
  # Three hosts, played one after the other: each draws five, the last the thirteenth three times.
  hosts = []
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(
    "jax.experimental.multihost_utils.process_allgather", lambda part, tiled: hosts.append(part) or part
  )
  for index in range(3):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    generate_all(generator, model, 13, 8, mesh(1), SEED)
  assert [len(part) for part in hosts] == [5, 5, 5]
  np.testing.assert_array_equal(np.concatenate(hosts)[:13], reference)


def test_labels_are_balanced_or_absent():
  assert np.bincount(balanced_labels(np.arange(30), 3)).tolist() == [10, 10, 10]
  assert balanced_labels(np.arange(3), 0) is None
  bound = lambda params, condition: Gaussian().denoise if condition.label is None else 1 / 0
  generator = make_generator(model_of(bound, SHAPE), SAMPLER)
  assert next(generate(generator, None, [0, 1], 0, 2)).shape == (2, *SHAPE)


def test_guidance_of_a_network_that_takes_the_scale_costs_no_further_evaluation():
  """Else it is D_other + w (D - D_other), of twice as many."""
  seen = []

  def bound(params, condition):
    seen.append(condition)
    level = 0.0 if condition.guidance is None else condition.guidance[0]
    return lambda x, sigma: 0 * x + (0.1 * condition.label.astype(x.dtype) + 0.2 * level)[:, None, None, None]

  fields = {"num_classes": NUM_CLASSES}
  embedded = model_of(bound, SHAPE, network={"guidance_embedding": True}, **fields)
  image = next(generate(make_generator(embedded, SAMPLER, 2.0), {}, [1], NUM_CLASSES, 1))
  assert len(seen) == 1 and image.ravel()[0] == np.floor(127.5 * 0.5 + 128)
  seen.clear()
  image = next(
    generate(make_generator(model_of(bound, SHAPE, **fields), SAMPLER, 2.0), {}, [1], NUM_CLASSES, 1)
  )
  assert [int(c.guidance is None) for c in seen] == [1, 1] and image.ravel()[0] == np.floor(127.5 * 0.3 + 128)


def test_guidance_of_a_model_without_classes_is_refused():
  with pytest.raises(UserError, match="^guidance = 2.0: expected none: the model has no classes"):
    make_generator(model_of(None, SHAPE), SAMPLER, 2.0)
