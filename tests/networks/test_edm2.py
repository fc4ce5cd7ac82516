"""Magnitude preservation: what EDM2 is built on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.networks import as_net, init_params, magnitude
from cm_jax.networks.edm2 import EDM2UNet
from cm_jax.networks.weighting import LogVariance
from tests.compiling import quick_jit


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rms(x):
  return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize(
  "operation",
  [
    lambda a, b: magnitude.mp_silu(a),
    lambda a, b: magnitude.mp_sum(a, b, 0.3),
    lambda a, b: magnitude.mp_cat(a, b[..., :5], 0.3),
    lambda a, b: magnitude.normalize(7 * a, -1),
  ],
)
def test_unit_magnitude_in_unit_magnitude_out(operation):
  assert rms(quick_jit(operation)(normal(64, 64, 32), normal(64, 64, 32, seed=1))) == pytest.approx(
    1, abs=0.02
  )


@pytest.mark.slow
def test_layers_preserve_magnitude_from_the_start():
  for module, x in [
    (magnitude.MPConv(64, 3), normal(4, 16, 16, 32)),
    (magnitude.MPConv(64, 0), normal(256, 32)),
  ]:
    y, params = module.init_with_output(jax.random.key(0), x)
    assert rms(y) == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(
      jnp.sqrt(jnp.mean(jnp.square(params["params"]["weight"].reshape(-1, 64)), 0)), 1, atol=1e-3
    )
  assert rms(magnitude.MPFourier(512).init_with_output(jax.random.key(0), normal(64))[0]) == pytest.approx(
    1, abs=0.05
  )


@pytest.mark.slow
def test_the_scale_of_a_weight_does_not_matter():
  x, module = normal(2, 4, 4, 3), magnitude.MPConv(5)
  params = module.init(jax.random.key(0), x)
  scaled = jax.tree.map(lambda w: 10 * w, params)
  np.testing.assert_allclose(module.apply(scaled, x), module.apply(params, x), atol=1e-3)
  gradient = jax.grad(lambda p: jnp.square(module.apply(p, x)).sum())(params)
  # so the gradient is orthogonal to the weight
  assert (
    abs(float(jnp.vdot(gradient["params"]["weight"], params["params"]["weight"])))
    < 1e-2 * rms(gradient["params"]["weight"]) * 135
  )


def test_normalize_has_a_derivative_at_zero():
  gradient = quick_jit(jax.grad(lambda x: magnitude.normalize(x, -1).sum()))(np.zeros((2, 4), np.float32))
  assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_normalize_weights_projects_weights_and_nothing_else():
  net = EDM2UNet(
    img_resolution=4, in_channels=2, out_channels=2, model_channels=8, channel_mult=(1,), num_blocks=1,
    channels_per_head=8, label_dim=3, guidance_embedding=True, second_time=True,
  )  # fmt: skip
  shapes = jax.eval_shape(lambda: init_params(net, jax.random.key(0), (4, 4, 2)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  projected = EDM2UNet.projection(params)
  assert jax.tree.structure(projected) == jax.tree.structure(params)
  for (path, before), after in zip(
    jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(projected), strict=True
  ):
    if path[-1].key == "weight":
      np.testing.assert_allclose(jnp.square(after.reshape(-1, after.shape[-1])).mean(0), 1, atol=1e-3)
    else:
      assert path[-1].key in ("emb_gain", "out_gain", "freqs", "phases", "guidance_gain", "until_gain")
      np.testing.assert_array_equal(after, before)
  x, c_noise = normal(2, 4, 4, 2), jnp.array([0.1, 0.4])
  evaluate = jax.jit(as_net(net), compiler_options={"xla_backend_optimization_level": 0})
  before, after = (evaluate(p, x, c_noise) for p in (params, projected))
  assert float(jnp.abs(after - before).max()) < 5e-3 * float(jnp.abs(before).max())


@pytest.mark.slow
def test_log_variance_head():
  module, c_noise = LogVariance(16), jnp.linspace(-1, 1, 5)
  u, params = module.init_with_output(jax.random.key(0), c_noise)
  assert u.shape == (5,) and rms(u) > 0.05
  assert set(params["params"]) == {"logvar_fourier", "logvar_linear"}
  gradient = jax.grad(lambda p: module.apply(p, c_noise).sum())(params)["params"]
  assert jnp.any(gradient["logvar_linear"]["weight"]) and not jnp.any(gradient["logvar_fourier"]["freqs"])
