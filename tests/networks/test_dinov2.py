"""DINOv2: its products, its position embeddings, parity with transformers' own code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.convert import dinov2 as published
from cm_jax.errors import UserError
from cm_jax.networks import dinov2
from tests import needs
from tests.networks.test_inception import products

TINY = dinov2.Size(128, 2, 5)


def arrays(size=TINY, seed=0):
  random = np.random.default_rng(seed)
  return {
    name: random.normal(size=shape, scale=0.1).astype(np.float32)
    for name, shape in dinov2.shapes(size).items()
  }


def cubic(distance, a=-0.75):
  d = abs(distance)
  if d <= 1:
    return (a + 2) * d**3 - (a + 3) * d**2 + 1
  return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize(("grid", "size", "offset"), [(5, 3, 0.1), (4, 7, 0.1), (5, 3, 0.0), (37, 16, 0.1)])
def test_position_embeddings_by_hand(grid, size, offset):
  stored = np.random.default_rng(grid).normal(size=(grid, grid, 2))
  found = dinov2.interpolated(stored, size, offset)
  for i, j in ((0, 0), (0, size - 1), (size // 2, 1), (size - 1, size - 1)):
    places = [(k + 0.5) * grid / (size + offset) - 0.5 for k in (i, j)]
    total = np.zeros(2)
    for down in range(-1, 3):
      for right in range(-1, 3):
        index = [int(np.floor(place)) + tap for place, tap in zip(places, (down, right), strict=True)]
        weight = np.prod([cubic(place - k) for place, k in zip(places, index, strict=True)])
        total += weight * stored[tuple(np.clip(index, 0, grid - 1))]
    np.testing.assert_allclose(found[i, j], total, atol=1e-12)


def test_every_product_is_exact_and_the_token_is_what_counts():
  params, x = dinov2.params_of(arrays(), 42), jnp.zeros((2, 42, 42, 3))
  with jax.default_matmul_precision("bfloat16"):
    found = list(products(jax.make_jaxpr(dinov2.dinov2)(params, x).jaxpr))
  assert len(found) == 1 + 6 * TINY.depth
  assert all(one.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for one in found)
  assert jax.eval_shape(dinov2.dinov2, params, x).shape == (2, 128)


def test_pixels_are_normalised_as_imagenet():
  found = dinov2.normalized(jnp.asarray([[[[0, 128, 255]]]], jnp.uint8))[0, 0, 0]
  expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "array", "message"),
  [
    ("register_tokens", np.zeros((1, 4, 128)), r"w: register_tokens = \(1, 4, 128\): expected no such array"),
    ("pos_embed", np.zeros((17, 128)), r"w: pos_embed = \(17, 128\): expected shape \(26, 128\)"),
    ("norm.bias", None, r"w: norm.bias = missing"),
  ],
)
def test_another_set_of_arrays_is_one_line(name, array, message):
  given = {**arrays(), name: array}
  if array is None:
    del given[name]
  with pytest.raises(UserError, match=message):
    dinov2.check(given, TINY, "w")


@pytest.mark.slow
@pytest.mark.parametrize("side", [70, 42, 98])
def test_parity_with_transformers(side, tmp_path, monkeypatch):
  """The same random weights, through a file of theirs; the grid as stored, smaller and larger."""
  transformers = needs.transformers()
  import torch

  config = transformers.Dinov2Config(
    hidden_size=128, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=4, image_size=70, patch_size=14
  )
  torch.manual_seed(side)
  theirs = transformers.Dinov2Model(config).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.normal_(std=0.1)
  theirs.save_pretrained(tmp_path)
  monkeypatch.setitem(dinov2.SIZES, "tiny", TINY)
  params = dinov2.params_of(published.read("tiny", tmp_path / "model.safetensors"), side, offset=0)
  x = np.random.default_rng(side).normal(size=(3, side, side, 3)).astype(np.float32)
  with torch.no_grad():
    expected = theirs.double()(torch.from_numpy(x.transpose(0, 3, 1, 2)).double()).pooler_output.numpy()
  found = np.asarray(jax.jit(dinov2.dinov2)(params, x))
  np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_position_embeddings_as_torch_scales_them():
  torch = needs.torch()
  stored = np.random.default_rng(3).normal(size=(37, 37, 4))
  scale = (16 + 0.1) / 37
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(stored.transpose(2, 0, 1)[None]), scale_factor=(scale, scale), mode="bicubic"
  )
  assert expected.shape == (1, 4, 16, 16)
  found = dinov2.interpolated(stored, 16).transpose(2, 0, 1)[None]
  np.testing.assert_allclose(found, expected.numpy(), atol=1e-9)
