"""The shared layers against what they are defined by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.networks import blocks, layers
from tests.compiling import quick_jit

group_norm = quick_jit(layers.group_norm, static_argnums=(3, 4))


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (6, 3), (64, 16)])
def test_group_norm_is_the_textbook_one(channels, groups):
  x, weight, bias = normal(2, 3, 5, channels), normal(channels, seed=1), normal(channels, seed=2)
  grouped = np.asarray(x, np.float64).reshape(2, 15, groups, channels // groups)
  mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
  expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * np.asarray(weight) + np.asarray(bias)
  np.testing.assert_allclose(group_norm(x, weight, bias, groups, 1e-5), expected, atol=2e-6)


def test_group_norm_of_a_constant_is_its_bias():
  # E[x^2] - E[x]^2 can round below zero here
  x = np.full((1, 4, 4, 8), 1234.567, np.float32)
  normed = lambda x: layers.group_norm(x, jnp.ones(8), jnp.full(8, 0.5), 2, 1e-6)
  y, gradient = quick_jit(lambda x: (normed(x), jax.grad(lambda x: normed(x).sum())(x)))(x)
  assert np.isfinite(y).all() and np.isfinite(gradient).all()


def test_group_norm_keeps_bfloat16_but_not_in_its_statistics():
  x = (normal(1, 16, 16, 8) + 8).astype(jnp.bfloat16)
  plain = np.ones(8, np.float32), np.zeros(8, np.float32), 2, 1e-6
  exact, y = group_norm(x.astype(np.float32), *plain), group_norm(x, *plain)
  assert y.dtype == jnp.bfloat16
  assert np.abs(np.asarray(y, np.float32) - exact).max() < 0.02


def resampled(x, taps, up):
  """Zero-stuff (up), filter and subsample (down) one axis at a time, in numpy."""
  taps = np.asarray(taps, np.float64) / sum(taps) * (2 if up else 1)
  for axis in (1, 2):
    x = np.moveaxis(x, axis, -1)
    n, pad = x.shape[-1], (len(taps) - 1) // 2
    if up:
      full = np.zeros((*x.shape[:-1], 2 * (n - 1) + len(taps)))
      for i in range(n):
        full[..., 2 * i : 2 * i + len(taps)] += x[..., i : i + 1] * taps
      x = full[..., pad : full.shape[-1] - pad]
    else:
      padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(pad, pad)])
      x = np.stack(
        [
          (padded[..., i : i + len(taps)] * taps).sum(-1)
          for i in range(0, padded.shape[-1] - len(taps) + 1, 2)
        ],
        -1,
      )
    x = np.moveaxis(x, -1, axis)
  return x


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4), (2, 1)])
def test_resampling_is_the_filter_it_names(taps):
  x = normal(2, 6, 4, 3)
  down, up = quick_jit(lambda x: (layers.downsample(x, taps), layers.upsample(x, taps)))(x)
  np.testing.assert_allclose(down, resampled(x, taps, False), atol=1e-6)
  np.testing.assert_allclose(up, resampled(x, taps, True), atol=1e-6)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4)])
def test_upsampling_is_four_times_the_transpose_of_downsampling(taps):
  x, y = normal(1, 8, 8, 2), normal(1, 4, 4, 2, seed=1)
  down, up = quick_jit(lambda x, y: (layers.downsample(x, taps), layers.upsample(y, taps)))(x, y)
  assert float(np.vdot(down, y)) == pytest.approx(float(np.vdot(x, up)) / 4, rel=1e-5)


@pytest.mark.parametrize("resize", [{}, {"up": True}, {"down": True}])
def test_a_1x1_convolution_commutes_with_resampling(resize):
  x = normal(2, 4, 4, 3)
  module = layers.Conv(5, 1, resample_filter=(1, 3, 3, 1), **resize)
  params = quick_jit(module.init)(jax.random.key(0), x)
  moved, found = quick_jit(
    lambda params, x: (layers.resample(x, resample_filter=(1, 3, 3, 1), **resize), module.apply(params, x))
  )(params, x)
  np.testing.assert_allclose(found, moved @ np.asarray(params["params"]["weight"][0, 0]), atol=1e-6)


def test_embeddings():
  x = np.array([0.0, 1.5, -3.0], np.float32)
  embedded = quick_jit(lambda x: layers.positional_embedding(x, 8, endpoint=True))(x)
  np.testing.assert_allclose(embedded[1, :4], np.cos(1.5 * 10000.0 ** (-np.arange(4) / 3)), atol=1e-6)
  np.testing.assert_allclose(embedded[1, 4:], np.sin(1.5 * 10000.0 ** (-np.arange(4) / 3)), atol=1e-6)
  module = layers.FourierEmbedding(8, scale=0.5)
  params = quick_jit(module.init)(jax.random.key(0), x)
  gradient = quick_jit(jax.grad(lambda p: module.apply(p, x).sum()))(params)
  assert not np.any(gradient["params"]["freqs"])
  assert np.any(params["params"]["freqs"])


def test_attention_averages_values_where_queries_are_zero():
  v = normal(2, 5, 3, 4)
  y = quick_jit(layers.attend)(np.zeros_like(v), normal(2, 5, 3, 4, seed=1), v)
  np.testing.assert_allclose(y, np.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-6)


def test_qkv_channels_are_head_then_channel_then_qkv():
  # EDM's order: output channel (head * size + i) * 3 + {0: q, 1: k, 2: v}
  x, module = normal(1, 2, 8), blocks.QKV(2, layers.Init("xavier_uniform"))
  params = jax.device_get(quick_jit(module.init)(jax.random.key(0), x))
  params["params"]["bias"] = normal(24, seed=3)
  flat = (x @ params["params"]["weight"][0, 0] + params["params"]["bias"][None, None]).reshape(1, 2, 2, 4, 3)
  for i, part in enumerate(quick_jit(module.apply)(params, x)):
    np.testing.assert_allclose(part, flat[..., i], atol=1e-6)


@pytest.mark.parametrize(
  ("mode", "expected"),
  [
    ("xavier_uniform", 2 / (9 * 32 + 9 * 16)),
    ("xavier_normal", 2 / (9 * 48)),
    ("kaiming_uniform", 1 / (9 * 32)),
    ("unit_normal", 1.0),
  ],
)
def test_initial_variance(mode, expected):
  weight = np.asarray(
    quick_jit(lambda key: layers.Init(mode, 0.5).weight(key, (3, 3, 32, 16)))(jax.random.key(0))
  )
  assert float(weight.var()) == pytest.approx(0.25 * expected, rel=0.08)
  assert float(np.abs(weight.mean())) < 0.05 * (0.25 * expected) ** 0.5
