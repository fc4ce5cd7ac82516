"""Pixels on the device: the conversions, mirroring, and EDM's augmentation in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cm_jax.data import resample as resampling
from cm_jax.data.augment import WIDTHS, Augment, Transforms, random_flip
from cm_jax.diffusion.pixels import normalize, quantize
from cm_jax.errors import UserError
from tests.compiling import quick_jit

NOTHING = dict.fromkeys(WIDTHS, 0.0)
# Not op by op: each would be compiled by itself.
inverse_affine, resample = quick_jit(resampling.inverse_affine), quick_jit(resampling.resample)


def only(name: str, **fields: float) -> Augment:
  """An augmentation with one transform, always applied."""
  return Augment(**{"p": 1.0, **NOTHING, name: 1.0, **fields})


def images(batch: int = 4, size: int = 8, channels: int = 2) -> np.ndarray:
  return np.random.default_rng(0).uniform(-1, 1, (batch, size, size, channels)).astype(np.float32)


def transforms(batch: int = 4, **given) -> Transforms:
  """Transforms that do nothing, but for those given."""
  zeros = {
    "xflip": np.zeros(batch, np.float32),
    "yflip": np.zeros(batch, np.float32),
    "rotate_int": np.zeros(batch, np.int32),
    "translate_int": np.zeros((batch, 2), np.int32),
    "scale": np.zeros(batch, np.float32),
    "rotate_frac": np.zeros(batch, np.float32),
    "aniso": np.zeros((batch, 2), np.float32),
    "translate_frac": np.zeros((batch, 2), np.float32),
  }
  return Transforms(
    **{**zeros, **{name: np.asarray(value, zeros[name].dtype) for name, value in given.items()}}
  )


def affine(batch: int = 1, **given) -> jax.Array:
  """`inverse_affine` that does nothing, but for what is given."""
  zeros = {
    **dict.fromkeys(("scale", "angle", "stretch", "axis"), np.zeros(batch, np.float32)),
    "shift": np.zeros((batch, 2), np.float32),
  }
  return inverse_affine(
    **{**zeros, **{name: np.asarray([value] * batch, np.float32) for name, value in given.items()}}
  )


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Positions of the pixels from the centre: x to the right, y down."""
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  return x, y


def bump(x, y, centre=(3.0, -2.0), widths=(3.0, 2.0)) -> np.ndarray:
  """A smooth image without any symmetry, off the centre."""
  return np.exp(-(((x - centre[0]) / widths[0]) ** 2) - ((y - centre[1]) / widths[1]) ** 2).astype(np.float32)


def inside(image, margin: int = 6):
  return np.asarray(image)[margin:-margin, margin:-margin]


def test_quantize_undoes_normalize_on_every_level():
  levels = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(quantize(normalize(levels)), levels)


def test_quantize_is_edms():
  x = np.linspace(-1.5, 1.5, 1001, dtype=np.float32)
  np.testing.assert_array_equal(
    quantize(jnp.asarray(x)), (x * np.float32(127.5) + np.float32(128)).clip(0, 255).astype(np.uint8)
  )


def test_latents_pass():
  x = jnp.array([[3.5, -7.0]])
  np.testing.assert_array_equal(normalize(x), x)


def test_flip_mirrors_half_of_the_images_whatever_the_sharding():
  images = np.arange(64 * 2 * 3, dtype=np.float32).reshape(64, 2, 3, 1)
  key, flip = jax.random.key(1), quick_jit(random_flip)
  flipped = np.asarray(flip(images, key))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  kept = (flipped == images).all((1, 2, 3))
  assert (mirrored != kept).all() and 16 <= mirrored.sum() <= 48
  np.testing.assert_array_equal(flip(images[:10], key), flipped[:10])
  mesh = jax.make_mesh((8,), ("data",))
  spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
  np.testing.assert_array_equal(flip(spread, key), flipped)


def test_mirroring_is_exact_and_told():
  x, augment = images(), Augment(**{**NOTHING, "xflip": 1.0, "yflip": 1.0})
  drawn = transforms(xflip=[0, 1, 0, 1], yflip=[0, 0, 1, 1])
  moved, label = quick_jit(lambda x, drawn: (augment.blit(x, drawn), augment.label(drawn, 8, 8)))(x, drawn)
  for got, want in zip(moved, (x[0], x[1, :, ::-1], x[2, ::-1], x[3, ::-1, ::-1]), strict=True):
    np.testing.assert_array_equal(got, want)
  assert label.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


@pytest.mark.slow
def test_quarter_turns_are_exact_and_told_in_two_bits():
  x, augment = images(), only("rotate_int")
  drawn = transforms(rotate_int=[0, 1, 2, 3])
  for k, got in enumerate(augment.blit(x, drawn)):
    np.testing.assert_array_equal(got, np.rot90(x[k], k))
  assert augment.label(drawn, 8, 8).tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
  with pytest.raises(UserError, match=r"rotate_int = 1.0: expected 0: images of 4 x 8"):
    augment(jnp.zeros((1, 4, 8, 1)), jax.random.key(0))


@pytest.mark.slow
def test_whole_pixel_shifts_are_exact_reflect_and_are_told():
  x, augment = images(), only("translate_int", translate_int_max=0.25)
  shifts = [(0, 0), (2, 0), (0, 1), (-1, -2)]  # right, up
  drawn = transforms(translate_int=shifts)
  for got, image, (right, up) in zip(augment.blit(x, drawn), x, shifts, strict=True):
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(got, padded[2 + up : 10 + up, 2 - right : 10 - right])
  assert augment.label(drawn, 8, 8).tolist() == [[0, 0], [1, 0], [0, 0.5], [-0.5, -1]]
  drawn = augment.draw(jax.random.key(0), (500, 8, 16, 1)).translate_int
  assert set(drawn[:, 0].tolist()) == set(range(-4, 5)) and set(drawn[:, 1].tolist()) == set(range(-2, 3))


def test_the_label_is_edms():
  """Order, units and signs of the 9 numbers that EDM's published networks take."""
  drawn = transforms(
    1,
    xflip=[1],
    yflip=[1],
    scale=[-0.5],
    rotate_frac=[math.pi / 6],
    aniso=[[2.0, math.pi / 3]],
    translate_frac=[[0.25, -1.5]],
  )
  want = [1, 1, -0.5, math.cos(math.pi / 6) - 1, 0.5, 2 * 0.5, 2 * math.sin(math.pi / 3), 0.25, -1.5]
  label_of = lambda augment, drawn: quick_jit(lambda drawn: augment.label(drawn, 32, 32))(drawn)
  label = label_of(Augment(), drawn)
  assert Augment().dim == 9 and label.dtype == jnp.float32
  np.testing.assert_allclose(label, [want], rtol=1e-6)
  np.testing.assert_allclose(
    label_of(Augment(yflip=0, rotate_frac=0), drawn), [want[:1] + want[2:3] + want[5:]], rtol=1e-6
  )
  assert Augment(rotate_int=1, translate_int=1).dim == 13
  np.testing.assert_array_equal(
    label_of(Augment(rotate_int=1, translate_int=1), transforms(2)), np.zeros((2, 13))
  )


def test_the_map_is_edms():
  """G^-1 = scale^-1 rotate(-w)^-1 rotate(r) stretch^-1 rotate(-r) translate^-1, with EDM's strengths."""
  scale, w, (a, r), (tx, ty) = -0.7, 2.0, (1.3, -0.4), (0.5, -2.0)
  drawn = transforms(1, scale=[scale], rotate_frac=[w], aniso=[[a, r]], translate_frac=[[tx, ty]])
  rotation = lambda t: np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]])
  size, stretch = 2 ** (0.2 * scale), 2 ** (0.2 * a)
  want = np.diag([1 / size, 1 / size, 1]) @ np.linalg.inv(rotation(-w))
  want = want @ np.linalg.inv(rotation(-r) @ np.diag([stretch, 1 / stretch, 1]) @ rotation(r))
  want = want @ np.array([[1, 0, -0.125 * 40 * tx], [0, 1, -0.125 * 32 * ty], [0, 0, 1]])
  inverse = quick_jit(lambda drawn: Augment().inverse(drawn, 32, 40))(drawn)
  np.testing.assert_allclose(inverse[0], want[:2], atol=1e-5)


@pytest.mark.parametrize(
  "given",
  [
    {"scale": 0.4},
    {"scale": -0.4},
    {"angle": 0.7},
    {"stretch": 0.3, "axis": 1.0},
    {"shift": (3.25, -1.5)},
    {"scale": 0.1, "angle": -2.0, "stretch": -0.2, "axis": 0.4, "shift": (1.3, 2.1)},
  ],
)
def test_resampling_is_the_image_at_the_moved_positions(given):
  x, y = grid(32)
  inverse = affine(**given)
  moved = np.asarray(resample(bump(x, y)[None, :, :, None], inverse))[0, :, :, 0]
  (a, b, c), (d, e, f) = np.asarray(inverse[0])
  truth = bump(a * x + b * y + c, d * x + e * y + f)
  assert np.abs(truth - bump(x, y)).max() > 0.1
  np.testing.assert_allclose(inside(moved), inside(truth), atol=0.02)


def test_what_is_seen():
  """Signs, by eye: a bump on the right is above after a quarter turn, further out when enlarged, ..."""
  x, y = grid(32)
  image = bump(x, y, centre=(5, 0))[None, :, :, None]

  def peak(**given):
    moved = inside(np.asarray(resample(image, affine(**given)))[0, :, :, 0])  # its reflections are outside
    row, column = np.unravel_index(np.argmax(moved), moved.shape)
    return inside(x)[row, column], inside(y)[row, column]

  near = lambda found, want: np.abs(np.subtract(found, want)).max() <= 0.75
  assert near(peak(angle=math.pi / 2), (0, -5))
  assert near(peak(scale=1.0), (10, 0)) and near(peak(scale=-1.0), (2.5, 0))
  assert near(peak(stretch=1.0), (10, 0)) and near(peak(stretch=1.0, axis=math.pi / 2), (2.5, 0))
  assert near(peak(stretch=1.0, axis=math.pi / 4), (5 * 1.25, -5 * 0.75))
  assert near(peak(shift=(2, 4)), (7, 4))
  turned = resample(images(), affine(4, angle=math.pi / 2))
  error = np.abs(np.asarray(turned) - np.rot90(images(), axes=(1, 2))).mean()
  assert error < 0.5 * np.abs(np.asarray(turned) - images()).mean()


def test_a_turn_and_its_inverse_give_the_image_back():
  x, y = grid(32)
  image = bump(x, y)[None, :, :, None]
  there = np.asarray(resample(image, affine(angle=0.6)))
  back = np.asarray(resample(there, affine(angle=-0.6)))
  assert np.abs(inside((there - image)[0])).max() > 0.3
  np.testing.assert_allclose(inside(back[0]), inside(image[0]), atol=0.02)


def test_details_survive_and_do_not_alias():
  """A wave of 0.3 cycles a pixel moved by half a pixel keeps 95 % of its amplitude, of which bilinear
  interpolation leaves 59 %; shrunk by 2, where it cannot be represented, it keeps less than a fifth, of which
  every other pixel of it has all."""
  x, _ = grid(64)
  wave = lambda shift: np.cos(2 * np.pi * 0.3 * (x - shift)).astype(np.float32)
  image = wave(0)[None, :, :, None]
  moved = inside(np.asarray(resample(image, affine(shift=(0.5, 0.0))))[0, :, :, 0], 16)
  truth = inside(wave(0.5), 16)
  assert 0.95 < (moved * truth).sum() / np.square(truth).sum() < 1.02
  shrunk = resample(image, affine(scale=-1.0))
  assert np.square(inside(np.asarray(shrunk)[0], 20)).mean() < 0.04 * np.square(image).mean()


def test_reflection_goes_on_beyond_the_first_edge():
  x, _ = grid(8)
  ramp = x.astype(np.float32)[None, :, :, None]
  period = 14  # reflection about the pixels at both edges
  far = np.asarray(resample(ramp, affine(shift=(3.0 * period, 0.0))))
  np.testing.assert_allclose(inside(far[0, :, :, 0], 2), inside(ramp[0, :, :, 0], 2), atol=0.1)
  once = np.asarray(resample(ramp, affine(shift=(3.0, 0.0))))[0, 4, :, 0]
  np.testing.assert_allclose(once[:3], np.pad(ramp[0, 4, :, 0], (3, 0), mode="reflect")[:3], atol=0.3)


@pytest.mark.slow
def test_where_nothing_is_drawn_the_image_comes_back_bit_for_bit():
  x = images(400)
  same = lambda got: [bool((a == b).all()) for a, b in zip(np.asarray(got), x, strict=True)]
  for augment in (Augment(p=0.0), Augment(p=0.0, rotate_int=1, translate_int=1), Augment(p=0.0, xflip=0.0)):
    moved, label = jax.jit(augment)(x, jax.random.key(0))
    assert all(same(moved)) and bool((label == 0).all()) and label.shape == (400, augment.dim)
  moved, label = jax.jit(Augment(p=0.1, xflip=0.0))(x, jax.random.key(0))
  untouched = (np.asarray(label) == 0).all(axis=1).tolist()
  assert same(moved) == untouched and 100 < sum(untouched) < 400


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_a_transform_is_applied_as_often_as_asked(name):
  p, count = 0.4, 3000
  augment = Augment(**{**NOTHING, "p": p, name: 0.5})
  label = np.asarray(augment.label(augment.draw(jax.random.key(2), (count, 32, 32, 1)), 32, 32))
  of_no_effect = {"xflip": 0.5, "yflip": 0.5, "rotate_int": 0.25, "translate_int": 1 / 64}.get(name, 0.0)
  rate = 0.5 * p * (1 - of_no_effect)
  assert abs((label != 0).any(axis=1).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
  assert label.shape == (count, WIDTHS[name])


@pytest.mark.slow
def test_what_is_drawn_has_edms_distributions():
  drawn = Augment(p=1.0).draw(jax.random.key(3), (4000, 32, 32, 3))
  for normal in (drawn.scale, drawn.aniso[:, 0], drawn.translate_frac[:, 0], drawn.translate_frac[:, 1]):
    assert abs(float(normal.mean())) < 0.08 and abs(float(normal.std()) - 1) < 0.06
  for angle in (drawn.rotate_frac, drawn.aniso[:, 1][drawn.aniso[:, 1] != 0]):
    assert float(jnp.abs(angle).max()) <= np.float32(math.pi)
    assert abs(float(angle.mean())) < 0.2 and abs(float(angle.std()) - math.pi / math.sqrt(3)) < 0.08
  assert abs(float((drawn.aniso[:, 1] != 0).mean()) - 0.5) < 0.04
  assert (
    abs(
      np.corrcoef(np.stack([drawn.scale, drawn.aniso[:, 0], drawn.rotate_frac, drawn.translate_frac[:, 0]]))[
        0, 1:
      ]
    ).max()
    < 0.08
  )
  flips = Augment(p=0.12).draw(jax.random.key(4), (4000, 32, 32, 3))
  assert abs(float(flips.xflip.mean()) - 0.5) < 0.04 and abs(float(flips.yflip.mean()) - 0.06) < 0.02


@pytest.mark.slow
def test_augmentation_is_the_same_whatever_the_batch_and_the_sharding():
  x, key, augment = images(64), jax.random.key(1), Augment(p=0.6, rotate_int=1, translate_int=1)
  moved, label = jax.jit(augment)(x, key)
  assert moved.dtype == label.dtype == jnp.float32 and float(jnp.abs(moved).max()) <= 1.0
  few, few_labels = jax.jit(augment)(x[:16], key)
  np.testing.assert_array_equal(few_labels, label[:16])
  np.testing.assert_allclose(few, moved[:16], atol=1e-6)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  sharded, sharded_labels = jax.jit(augment)(spread, key)
  np.testing.assert_allclose(sharded_labels, label, atol=1e-6)
  np.testing.assert_allclose(sharded, moved, atol=1e-6)
  other = jax.jit(augment)(x, jax.random.key(2))[1]
  assert not bool((other == label).all())


@pytest.mark.slow
def test_float64_and_images_that_are_not_square(x64):
  x = np.random.default_rng(0).uniform(-1, 1, (3, 6, 10, 1))
  moved, label = Augment(p=1.0, translate_int=1)(x, jax.random.key(0))
  assert moved.dtype == jnp.float64 and moved.shape == x.shape and label.dtype == jnp.float32
  assert only("rotate_int")(np.zeros((2, 6, 6, 1)), jax.random.key(0))[0].shape == (2, 6, 6, 1)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"p": 1.5}, r"^p = 1.5: expected a number in \[0, 1\]"),
    ({"p": True}, r"^p = True"),
    ({"scale": -1.0}, r"^scale = -1.0: expected a number >= 0"),
    ({"scale_std": float("nan")}, r"^scale_std = nan"),
    ({"rotate_frac": "much"}, r"^rotate_frac = much"),
    ({"rotate_frac_max": 2.0}, r"^rotate_frac_max = 2.0"),
    ({"translate_int": 1.0, "translate_int_max": 0.0}, r"^translate_int_max"),
    (NOTHING, r"^xflip = 0.0: expected a transform"),
  ],
)
def test_values_out_of_range_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(Augment(), **fields)
