"""The shared layers against what they are defined by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.networks import blocks, layers


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (6, 3), (64, 16)])
def test_group_norm_is_the_textbook_one(channels, groups):
  x, weight, bias = normal(2, 3, 5, channels), normal(channels, seed=1), normal(channels, seed=2)
  grouped = np.asarray(x, np.float64).reshape(2, 15, groups, channels // groups)
  mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
  expected = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * np.asarray(weight) + np.asarray(bias)
  np.testing.assert_allclose(layers.group_norm(x, weight, bias, groups, 1e-5), expected, atol=2e-6)


def test_group_norm_of_a_constant_is_its_bias():
  # E[x^2] - E[x]^2 can round below zero here
  x = jnp.full((1, 4, 4, 8), 1234.567)
  y = layers.group_norm(x, jnp.ones(8), jnp.full(8, 0.5), 2, 1e-6)
  assert jnp.isfinite(y).all()
  gradient = jax.grad(lambda x: layers.group_norm(x, jnp.ones(8), jnp.zeros(8), 2, 1e-6).sum())(x)
  assert jnp.isfinite(gradient).all()


def test_group_norm_keeps_bfloat16_but_not_in_its_statistics():
  x = (normal(1, 16, 16, 8) + 8).astype(jnp.bfloat16)
  exact = layers.group_norm(x.astype(jnp.float32), jnp.ones(8), jnp.zeros(8), 2, 1e-6)
  y = layers.group_norm(x, jnp.ones(8), jnp.zeros(8), 2, 1e-6)
  assert y.dtype == jnp.bfloat16
  assert float(jnp.abs(y.astype(jnp.float32) - exact).max()) < 0.02


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
  np.testing.assert_allclose(layers.downsample(x, taps), resampled(np.asarray(x), taps, False), atol=1e-6)
  np.testing.assert_allclose(layers.upsample(x, taps), resampled(np.asarray(x), taps, True), atol=1e-6)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4)])
def test_upsampling_is_four_times_the_transpose_of_downsampling(taps):
  x, y = normal(1, 8, 8, 2), normal(1, 4, 4, 2, seed=1)
  assert float(jnp.vdot(layers.downsample(x, taps), y)) == pytest.approx(
    float(jnp.vdot(x, layers.upsample(y, taps))) / 4, rel=1e-5
  )


@pytest.mark.parametrize("resize", [{}, {"up": True}, {"down": True}])
def test_a_1x1_convolution_commutes_with_resampling(resize):
  x = normal(2, 4, 4, 3)
  module = layers.Conv(5, 1, resample_filter=(1, 3, 3, 1), **resize)
  params = module.init(jax.random.key(0), x)
  expected = layers.resample(x, resample_filter=(1, 3, 3, 1), **resize) @ params["params"]["weight"][0, 0]
  np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-6)


def test_embeddings():
  x = jnp.array([0.0, 1.5, -3.0])
  embedded = layers.positional_embedding(x, 8, endpoint=True)
  np.testing.assert_allclose(embedded[1, :4], np.cos(1.5 * 10000.0 ** (-np.arange(4) / 3)), atol=1e-6)
  np.testing.assert_allclose(embedded[1, 4:], np.sin(1.5 * 10000.0 ** (-np.arange(4) / 3)), atol=1e-6)
  module = layers.FourierEmbedding(8, scale=0.5)
  params = module.init(jax.random.key(0), x)
  gradient = jax.grad(lambda p: module.apply(p, x).sum())(params)
  assert not jnp.any(gradient["params"]["freqs"])
  assert jnp.any(params["params"]["freqs"])


def test_attention_averages_values_where_queries_are_zero():
  v = normal(2, 5, 3, 4)
  y = layers.attend(jnp.zeros_like(v), normal(2, 5, 3, 4, seed=1), v)
  np.testing.assert_allclose(y, jnp.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-6)


def test_qkv_channels_are_head_then_channel_then_qkv():
  # EDM's order: output channel (head * size + i) * 3 + {0: q, 1: k, 2: v}
  x, module = normal(1, 2, 8), blocks.QKV(2, layers.Init("xavier_uniform"))
  params = module.init(jax.random.key(0), x)
  params["params"]["bias"] = normal(24, seed=3)
  flat = (x @ params["params"]["weight"][0, 0] + params["params"]["bias"][None, None]).reshape(1, 2, 2, 4, 3)
  for i, part in enumerate(module.apply(params, x)):
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
  weight = layers.Init(mode, 0.5).weight(jax.random.key(0), (3, 3, 32, 16))
  assert float(weight.var()) == pytest.approx(0.25 * expected, rel=0.08)
  assert float(jnp.abs(weight.mean())) < 0.05 * (0.25 * expected) ** 0.5
