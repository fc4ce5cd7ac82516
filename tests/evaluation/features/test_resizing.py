"""Each resize by the formula of whose it is; features follow it, and so does what is said of them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cm_jax.evaluation.features import RESIZES, dinov2, with_resize
from cm_jax.networks.inception import resized
from tests.networks.test_dinov2 import TINY, arrays

RANDOM = np.random.default_rng(0)
SHAPES = ((30, 20, 3), (24, 24, 3), (7, 50, 1), (5, 1, 3), (1, 1, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_bicubic_is_pillows(shape):
  image = RANDOM.integers(0, 256, shape, np.uint8)
  mode = "RGB" if shape[2] == 3 else "L"
  own = Image.fromarray(image if shape[2] == 3 else image[:, :, 0], mode)
  expected = np.asarray(own.resize((24, 24), Image.BICUBIC).convert("RGB"))
  np.testing.assert_array_equal(RESIZES["pil-bicubic"](image[None], 24)[0], expected)
  middle = image // 2 + 60  # nothing is clipped
  rounded, not_rounded = (RESIZES[name](middle[None], 24)[0] for name in ("pil-bicubic", "pil-bicubic-float"))
  assert not_rounded.dtype == np.float32 and not_rounded.shape == (24, 24, 3)
  assert np.abs(not_rounded - rounded).max() <= 1.2  # by each axis


@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_ones_are_their_formulas(shape):
  image, side = RANDOM.integers(0, 256, shape, np.uint8), 24

  def weights(length, offset):
    matrix = np.zeros((side, length))
    for i in range(side):
      place = max((i + offset) * length / side - offset, 0)
      low = min(int(place + 1e-9), length - 1)
      matrix[i, low] += 1 - (place - low)
      matrix[i, min(low + 1, length - 1)] += place - low
    return matrix

  for name, offset in (("tf1-bilinear", 0.0), ("torch-bilinear", 0.5)):
    down, across = (weights(length, offset) for length in shape[:2])
    expected = np.einsum("ih,hwc,jw->ijc", down, image.astype(np.float64), across)
    found = RESIZES[name](image[None], side)[0]
    assert found.shape == (side, side, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=5e-3)
  np.testing.assert_array_equal(
    np.asarray(resized(image[None], side))[..., :1], RESIZES["tf1-bilinear"](image[None], side)[..., :1]
  )


@pytest.mark.parametrize("name", RESIZES)
def test_every_one_keeps_what_is_even_and_makes_grey_three_channels(name):
  found = RESIZES[name](np.full((2, 5, 9, 1), 77, np.uint8), 7)
  assert found.shape == (2, 7, 7, 3) and found.dtype in (np.uint8, np.float32)
  np.testing.assert_allclose(found, 77, atol=1e-3)


@pytest.mark.slow
def test_features_follow_the_resize():
  usual = dinov2.of_arrays(arrays(seed=1), "dinov2-t", TINY, batch_size=8)
  images = RANDOM.integers(0, 256, (3, 40, 24, 3), np.uint8)
  other = with_resize(usual, "torch-bilinear")
  assert (usual.resize, other.resize) == ("pil-bicubic 224", "torch-bilinear 224")
  assert with_resize(usual, None) is usual
  found = other(images).features
  assert np.abs(found - usual(images).features).max() > 1e-4
  by_hand = RESIZES["torch-bilinear"](images, 224).round().astype(np.uint8)
  np.testing.assert_allclose(found, usual(by_hand).features, atol=0.05)
  assert (
    dataclasses.replace(other, how="pil-bicubic")(images).features.tolist() == usual(images).features.tolist()
  )
