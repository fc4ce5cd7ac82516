"""DINOv2 as an extractor: batches, images of any size."""

import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation.features import FEATURES, dinov2
from cm_jax.networks.dinov2 import PATCH
from tests.networks.test_dinov2 import TINY, arrays


@pytest.fixture(scope="module")
def measure():
  return dinov2.of_arrays(arrays(seed=1), "dinov2-t", TINY, batch_size=8)


@pytest.mark.slow
def test_any_number_and_size_of_images(measure):
  images = np.random.default_rng(2).integers(0, 256, (11, 40, 24, 1), np.uint8)
  found = measure(images)
  assert found.features.shape == (11, TINY.features) and found.features.dtype == np.float32
  assert found.logits is None and found.spatial is None
  np.testing.assert_allclose(measure(images[7:9]).features, found.features[7:9], atol=1e-5)
  np.testing.assert_allclose(measure(np.repeat(images, 3, 3)).features, found.features, atol=1e-5)
  assert np.abs(found.features[0] - found.features[1]).max() > 1e-3


def test_what_it_has_not_is_named(measure):
  assert (measure.size, measure.image_shape, measure.resize) == (TINY.features, None, "pil-bicubic 224")
  assert 224 % PATCH == 0 and {"dinov2-b", "dinov2-l"} <= FEATURES.keys()
  with pytest.raises(UserError, match=r"features = dinov2-t: .*gives logits"):
    measure(np.zeros((1, 8, 8, 3), np.uint8), ("logits",))
  with pytest.raises(UserError, match="images = float32"):
    measure(np.zeros((1, 8, 8, 3), np.float32))
