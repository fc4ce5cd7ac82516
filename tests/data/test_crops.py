"""The crops give the pixels that ADM's and EDM's own code gives."""

import hashlib

import numpy as np
import pytest

from cm_jax.data.sources.crops import CROPS, crop_adm, crop_edm


def picture(height, width, channels):
  y, x, k = np.ogrid[:height, :width, :channels]
  return ((y * y * 7 + x * x * 3 + x * y * 5 + k * 91) // 11 % 256).astype(np.uint8)


# sha256 of what openai/guided-diffusion's center_crop_arr and NVlabs/edm's center-crop make of picture(...)
# at 32 pixels (Pillow 13)
EXPECTED = {
  (97, 131, 3): ("ec883d5343029681", "6e63f0cda9cf093c"),
  (131, 97, 3): ("597e74c2b95743fc", "4440dcc2643eb524"),
  (64, 64, 3): ("d24ee97204de9459", "927652e0853431c1"),
  (20, 33, 3): ("17a9b6bdcf61c6f1", "01edaefb7224ee0d"),
  (300, 201, 1): ("0611a2c4dce3306e", "7bc8f5aa3d199865"),
  (128, 77, 1): ("bbe8e56bd033a76e", "6cc1e4b218584ac1"),
}


@pytest.mark.parametrize("shape", EXPECTED)
def test_the_pixels_of_the_originals(shape):
  for crop, expected in zip((crop_adm, crop_edm), EXPECTED[shape], strict=True):
    assert hashlib.sha256(crop(picture(*shape), 32).tobytes()).hexdigest()[:16] == expected


@pytest.mark.parametrize("name", CROPS)
def test_shape_and_grey(name):
  for height, width, resolution in ((5, 9, 1), (9, 5, 3), (64, 65, 64), (31, 500, 17)):
    made = CROPS[name](picture(height, width, 1), resolution)
    assert made.shape == (resolution, resolution, 1 if name == "center" else 3) and made.dtype == np.uint8
    assert (made == made[..., :1]).all()


@pytest.mark.parametrize("name", CROPS)
def test_a_square_of_the_resolution_stays_as_it_is(name):
  pixels = picture(24, 24, 3)
  np.testing.assert_array_equal(CROPS[name](pixels, 24), pixels)


@pytest.mark.parametrize("name", CROPS)
def test_the_centre_is_kept(name):
  pixels = np.zeros((16, 48, 3), np.uint8)
  pixels[:, 16:32] = 200
  np.testing.assert_array_equal(CROPS[name](pixels, 16), np.full((16, 16, 3), 200))


def test_adm_halves_by_averaging_first():
  pixels = picture(32, 32, 3)

  def halved(image):  # Pillow goes along rows, rounds, goes along columns
    rows = (image[:, ::2].astype(int) + image[:, 1::2] + 1) // 2
    return (rows[::2] + rows[1::2] + 1) // 2

  np.testing.assert_array_equal(crop_adm(pixels, 8), halved(halved(pixels)))
  assert (crop_edm(pixels, 8) != crop_adm(pixels, 8)).any()
