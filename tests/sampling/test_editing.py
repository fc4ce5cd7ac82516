"""Zero-shot editing: what is measured is kept, what is filled in has the statistics of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.grids import karras_grid
from cm_jax.diffusion.noise import per_sample_noise
from cm_jax.diffusion.pixels import normalize, quantize
from cm_jax.errors import UserError
from cm_jax.sampling.editing import (
  STROKE_SIGMAS,
  TASKS,
  default_sigmas,
  denoise,
  edit,
  fill_in,
  interpolate,
  resample,
)
from cm_jax.sampling.interpolation import slerp
from cm_jax.sampling.operators import LUMINANCE, Colorize, Mask, SuperResolution
from cm_jax.types import NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian, GaussianPreconditioned
from tests.sampling.models import model_of

NOISE = NoiseRange()
DATA = Gaussian(mean=0.1, std=0.2)
f = DATA.consistency(NOISE.sigma_min)
SIGMAS = default_sigmas(NOISE, 18)
RNG = np.random.default_rng(0)
KNOWN = RNG.integers(0, 2, (8, 8)).astype(float)
OPERATORS = {"mask": Mask(KNOWN), "colorize": Colorize(), "superres": SuperResolution(4)}


def reference(batch: int = 6):
  return RNG.uniform(-0.9, 0.9, (batch, 8, 8, 3)).astype(np.float32)


def noise_of(batch: int, seed: int = 0):
  return per_sample_noise(jax.random.key(seed), jnp.arange(batch))


@pytest.mark.parametrize("name", OPERATORS)
def test_merging_is_a_projection_that_keeps_the_measurement(name):
  operator, x, y = OPERATORS[name], reference(), reference()
  merged = operator.merge(x, y)
  np.testing.assert_allclose(operator.forward(merged), operator.forward(y), atol=1e-6)
  np.testing.assert_allclose(operator.merge(merged, y), merged, atol=1e-6)
  # only the measurement of y counts
  np.testing.assert_allclose(operator.merge(x, operator.forward(y)), merged, atol=1e-6)
  assert float(jnp.abs(merged - y).max()) > 0.1


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=() if name == "mask" else pytest.mark.slow) for name in OPERATORS]
)
def test_editing_keeps_what_is_measured_and_fills_in_what_is_not(name):
  operator, y = OPERATORS[name], reference()
  run = quick_jit(
    lambda y, draws: fill_in(f, lambda k, shape: draws[k], y, operator, SIGMAS, NOISE.sigma_min)
  )
  draws = RNG.normal(size=(2, len(SIGMAS), *y.shape)).astype(np.float32)
  result, other = (np.asarray(run(y, drawn)) for drawn in draws)
  np.testing.assert_allclose(operator.forward(result), operator.forward(y), atol=2e-6)
  assert np.abs(result - y).max() > 0.2
  if name == "mask":
    kept = np.broadcast_to(KNOWN[None, :, :, None] == 1, y.shape)
    assert (np.asarray(quantize(result))[kept] == np.asarray(quantize(y))[kept]).all()  # bit for bit
  assert np.abs(other - result).max() > 0.1


@pytest.mark.slow
def test_what_is_filled_in_has_the_datas_statistics():
  """Independent Gaussian pixels: the unknown ones are draws of the data, whatever the known ones are."""
  n = 400
  y = jnp.full((n, 8, 8, 1), 0.7)
  result = np.asarray(jax.jit(lambda y: fill_in(f, noise_of(n), y, Mask(KNOWN), SIGMAS, NOISE.sigma_min))(y))
  filled = result[:, KNOWN == 0]
  assert abs(filled.mean() - 0.1) < 0.01 and abs(filled.std() - 0.2) < 0.01
  means = np.asarray(SuperResolution(4).forward(result))
  assert means.std() > 0.01


def test_luminance_and_block_means_are_the_usual_ones():
  y = reference()
  draws = jnp.asarray(RNG.normal(size=(2, *y.shape)), jnp.float32)
  filled = lambda operator: np.asarray(
    quick_jit(lambda y: fill_in(f, lambda k, shape: draws[k], y, operator, SIGMAS[:2], NOISE.sigma_min))(y)
  )
  result = filled(Colorize())
  np.testing.assert_allclose(
    result @ np.array(LUMINANCE, np.float32), y @ np.array(LUMINANCE, np.float32), atol=1e-6
  )
  result = filled(SuperResolution(2))
  blocks = lambda x: np.asarray(x).reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
  np.testing.assert_allclose(blocks(result), blocks(y), atol=1e-6)


@pytest.mark.slow
def test_strokes_and_variations_stay_near_at_low_levels_and_forget_at_high_ones():
  y = jnp.full((50, 8, 8, 1), 0.6)
  away = lambda sigmas: float(jnp.abs(resample(f, noise_of(50), y, sigmas, NOISE.sigma_min).mean() - 0.6))
  assert away((0.01,)) < 0.02 < away((0.2,)) < away(STROKE_SIGMAS)
  assert abs(away((80.0,)) - 0.5) < 0.02  # the data's mean


def test_denoising_is_the_model_at_the_noises_level():
  x = jnp.full((4, 8, 8, 1), 0.1) + 0.5 * noise_of(4)(0, (4, 8, 8, 1))
  cleaned = denoise(f, x, jnp.full(4, 0.5))
  np.testing.assert_allclose(cleaned, jnp.clip(f(x, jnp.full(4, 0.5)), -1, 1))
  assert float(jnp.std(cleaned - 0.1)) < 0.5 * float(jnp.std(x - 0.1))


@pytest.mark.slow
def test_interpolation_passes_through_both_samples():
  a, b = noise_of(2)(0, (2, 8, 8, 1))
  t = jnp.linspace(0, 1, 5)
  path = slerp(a, b, t)
  np.testing.assert_allclose(path[0], a, atol=1e-5)
  np.testing.assert_allclose(path[-1], b, atol=1e-5)
  norms = jnp.linalg.norm(path.reshape(5, -1), axis=1)
  assert float(norms.min()) > 0.95 * float(jnp.minimum(jnp.linalg.norm(a), jnp.linalg.norm(b)))
  np.testing.assert_allclose(slerp(a, a, t)[2], a, rtol=1e-5)
  images = interpolate(f, a, b, t, 80.0)
  np.testing.assert_allclose(images[0], jnp.clip(f(80 * a[None], jnp.full(1, 80.0)), -1, 1)[0], atol=1e-5)


def test_the_default_schedule_is_the_karras_grid_without_its_end():
  np.testing.assert_allclose(SIGMAS, karras_grid(18, NOISE)[:-1], rtol=1e-5)


def test_bad_factors_and_channels_are_refused():
  with pytest.raises(UserError, match=r"^factor = 1"):
    SuperResolution(1)
  with pytest.raises(UserError, match=r"^factor = 3: expected a divisor of 8x8"):
    SuperResolution(3).forward(reference())
  with pytest.raises(UserError, match="3 channels"):
    Colorize().forward(reference()[..., :1])


MODEL = model_of(
  GaussianPreconditioned(NOISE.sigma_min), (8, 8, 3), params={"net": {"mean": 0.1, "std": 0.2}}, num_classes=0
)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_a_model_edits_uint8_images_as_the_core_does(name):
  operator = OPERATORS[name]
  edited = edit(MODEL, operator, IMAGES, (80.0, 2.0), num=2, seed=3, batch_size=4, progress=False)
  np.testing.assert_array_equal(edited.inputs, IMAGES.repeat(2, axis=0))
  x = normalize(jnp.asarray(edited.inputs))
  expected = quantize(fill_in(f, noise_of(10, 3), x, operator, (80.0, 2.0), NOISE.sigma_min))
  assert np.abs(edited.results.astype(int) - np.asarray(expected)).max() <= 1
  np.testing.assert_array_equal(edited.known, quantize(operator.shown(x)))
  if name == "mask":
    kept = np.broadcast_to(KNOWN[None, :, :, None] == 1, edited.results.shape)
    np.testing.assert_array_equal(edited.results[kept], edited.inputs[kept])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_tasks_that_measure_nothing(task):
  run = lambda seed: edit(
    MODEL, task, None if task == "interpolate" else IMAGES, sigma=0.3, num=3, seed=seed, progress=False
  )
  first, again, other = run(0), run(0), run(1)
  np.testing.assert_array_equal(first.results, again.results)
  assert (first.results != other.results).any() == (task != "denoise")
  assert first.results.dtype == np.uint8
  if task == "interpolate":
    assert first.inputs is first.known is None and first.results.shape == (3, 8, 8, 3)
  else:
    assert first.inputs is first.known and first.results.shape == (15, 8, 8, 3)


@pytest.mark.slow
def test_the_ends_of_an_interpolation_are_the_samples_of_the_seed():
  edited = edit(MODEL, "interpolate", num=7, seed=5, batch_size=3, progress=False)
  z = noise_of(2, 5)(0, (2, 8, 8, 3))
  ends = quantize(jnp.clip(f(80 * z, jnp.full(2, 80.0)), -1, 1))
  assert np.abs(edited.results[[0, -1]].astype(int) - np.asarray(ends)).max() <= 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"task": "paint"}, "^task = paint: expected one of: denoise"),
    ({"task": "stroke", "label": 3}, "^label = 3: expected -1: the model has no classes"),
    ({"task": "stroke", "images": None}, "^images = None: expected images of shape"),
    ({"task": "stroke", "images": IMAGES[:, 1:]}, "^images = "),
    ({"task": "denoise"}, "^sigma = : expected the noise level of the input, 0.002 to 80"),
    ({"task": "denoise", "sigma": 81.0}, "^sigma = 81.0"),
    ({"task": Colorize(), "sigmas": (1.0, 2.0)}, "^sigmas = 1,2"),
    ({"task": SuperResolution(3)}, "^factor = 3: expected a divisor of 8x8"),
    ({"task": "stroke", "seed": -1}, "^seed = -1"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    edit(MODEL, **{"images": IMAGES, "progress": False, **arguments})
