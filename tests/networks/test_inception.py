"""Inception-2015's parts by plain numpy; the whole is held to torch-fidelity's numbers in tests/golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.networks import inception, inception_units
from tests.compiling import quick_jit


def by_hand(image, size):
  """TensorFlow 1's ResizeBilinear, pixel by pixel, in float64."""
  height, width, channels = image.shape
  out = np.zeros((size, size, channels))
  for i in range(size):
    for j in range(size):
      y, x = i * height / size, j * width / size
      top, left = int(y), int(x)
      bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
      upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
      lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
      out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
  return out


@pytest.mark.parametrize("shape", [(7, 4, 3), (33, 80, 1), (1, 1, 3), (17, 17, 3), (2, 400, 3)])
def test_resize_up_and_down_and_not_square(shape):
  images = np.random.default_rng(1).integers(0, 256, (2, *shape), np.uint8)
  found = np.asarray(quick_jit(lambda images: inception.resized(images, 17))(images))
  for image, one in zip(images, found, strict=True):
    np.testing.assert_allclose(one, by_hand(image.astype(np.float64), 17), atol=1e-2)  # float32's places
  if shape[:2] == (17, 17):
    np.testing.assert_array_equal(found, images)


def test_grey_is_three_channels_alike():
  grey = np.random.default_rng(2).integers(0, 256, (2, 9, 5, 1), np.uint8)
  prepared = quick_jit(inception.prepared)
  x = np.asarray(prepared(grey))
  assert x.shape == (2, 299, 299, 3) and x.dtype == jnp.float32
  np.testing.assert_array_equal(x, prepared(np.repeat(grey, 3, 3)))
  assert float(x.min()) >= -1 and float(x.max()) < 1


def test_average_pool_counts_only_what_is_inside():
  x = np.random.default_rng(3).normal(size=(1, 4, 5, 2)).astype(np.float32)
  found = np.asarray(quick_jit(inception._average_pool)(x))
  for i in range(4):
    for j in range(5):
      window = x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      np.testing.assert_allclose(found[0, i, j], window.mean((0, 1)), rtol=1e-5, atol=1e-6)


def abstract_params():
  """The shapes of `folded`, without numbers."""
  params = {}
  for name, channels, unit in inception_units.units():
    shape = (*unit.window, channels, unit.features)
    params[name] = {
      "weight": jax.ShapeDtypeStruct(shape, jnp.float32),
      "bias": jax.ShapeDtypeStruct((unit.features,), jnp.float32),
    }
  params["fc"] = {
    "weight": jax.ShapeDtypeStruct((2048, 1008), jnp.float32),
    "bias": jax.ShapeDtypeStruct((1008,), jnp.float32),
  }
  return params


def products(jaxpr):
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from products(inner)


@pytest.mark.parametrize("asked", ["default", "bfloat16", "highest"])
def test_every_product_is_exact_whatever_is_asked(asked):
  x = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
  with jax.default_matmul_precision(asked):
    program = jax.make_jaxpr(inception.inception)(abstract_params(), x)
  found = list(products(program.jaxpr))
  assert len(found) == 94 + 1
  for equation in found:
    assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
  sizes = jax.eval_shape(inception.inception, abstract_params(), x)
  assert [out.shape for out in sizes] == [(2, n) for n in (64, 192, 768, 2048, 2023, 1008, 1008)]


def arrays(change=None):
  """A cheap set: views of one zero."""
  found = {name: np.broadcast_to(np.float32(0), shape) for name, shape in inception.shapes().items()}
  return {**found, **(change or {})}


def test_folding_is_the_batch_norm():
  random = np.random.default_rng(4)
  name, features = "Conv2d_3b_1x1", 80
  drawn = {f"{name}.bn.{kind}": random.normal(size=features) for kind in ("weight", "bias", "running_mean")}
  drawn[f"{name}.bn.running_var"] = random.uniform(0.1, 2, features)
  drawn[f"{name}.conv.weight"] = random.normal(size=(1, 1, 64, features))
  given = arrays({key: value.astype(np.float32) for key, value in drawn.items()})
  unit = inception.folded(given)[name]
  x = random.normal(size=64)
  plain = x @ given[f"{name}.conv.weight"][0, 0].astype(np.float64)
  mean, variance, gain, bias = (
    given[f"{name}.bn.{kind}"].astype(np.float64)
    for kind in ("running_mean", "running_var", "weight", "bias")
  )
  expected = (plain - mean) / np.sqrt(variance + 1e-3) * gain + bias
  np.testing.assert_allclose(x @ unit["weight"][0, 0] + unit["bias"], expected, atol=1e-4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"fc.bias": np.zeros(1000, np.float32)}, r"w: fc.bias = \(1000,\): expected shape \(1008,\)"),
    ({"AuxLogits.fc.bias": np.zeros(3)}, r"w: AuxLogits.fc.bias = \(3,\): expected no such array"),
    ({"fc.bias": np.full(1008, np.nan, np.float32)}, "w: fc.bias = not finite"),
    (None, r"w: fc.weight = missing: expected shape \(2048, 1008\)"),
  ],
)
def test_another_set_of_arrays_is_one_line(change, message):
  given = arrays(change)
  if change is None:
    del given["fc.weight"]
  with pytest.raises(UserError, match=message):
    inception.check(given, "w")
