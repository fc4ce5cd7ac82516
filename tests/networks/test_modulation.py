"""How a block is told the noise level: by a shift, by AdaGN, or by sCM's adaptive double normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.assembly.complete import complete
from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS, as_net, layers
from cm_jax.networks.blocks import MODULATIONS, UNetBlock
from cm_jax.networks.edm2 import EDM2Block
from tests.examples import EXAMPLES
from tests.networks.small import far, inputs, jit, make, random_params, shapes_of


def silu(x):
  return x / (1 + np.exp(-x))


def pnorm(x):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-8)


def drawn(module, *given, scale=0.4):
  rng = np.random.default_rng(7)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *given))["params"]
  draw = lambda leaf: np.asarray(rng.normal(size=leaf.shape) * scale, jnp.result_type(float))
  return jax.tree.map(draw, shapes)


@pytest.mark.slow
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_a_block_is_its_equation(modulation, x64):
  rng = np.random.default_rng(3)
  x, emb = rng.normal(size=(2, 5, 5, 8)), rng.normal(size=(2, 6)) * 3
  module = UNetBlock(12, dtype="float64", **MODULATIONS[modulation])
  params = drawn(module, x, emb)
  affine = emb @ np.asarray(params["affine"]["weight"]) + np.asarray(params["affine"]["bias"])
  assert affine.shape == (2, 12 if modulation == "shift" else 24)

  def normed(h, name):
    weight, bias = params[name]["weight"], params[name]["bias"]
    return np.asarray(layers.group_norm(jnp.asarray(h), weight, bias, h.shape[-1] // 4, 1e-5))

  def conv(h, name):
    return np.asarray(
      layers.conv(jnp.asarray(h), params[name]["weight"], 1) + params[name]["bias"][None, None, None]
    )

  h = conv(silu(normed(x, "norm0")), "conv0")
  s, b = affine[:, None, None, :12], affine[:, None, None, -12:]
  told = {
    "shift": lambda: normed(h + b, "norm1"),
    "scale_shift": lambda: normed(h, "norm1") * (s + 1) + b,
    "double": lambda: normed(h, "norm1") * pnorm(s) + pnorm(b),
  }[modulation]()
  skip = x @ np.asarray(params["skip"]["weight"])[0, 0] + np.asarray(params["skip"]["bias"])
  found = module.apply({"params": params}, jnp.asarray(x), jnp.asarray(emb))
  np.testing.assert_allclose(found, conv(silu(told), "conv1") + skip, atol=1e-10)


def test_the_magnitude_of_scale_and_shift_does_not_matter_to_a_double_norm():
  rng = np.random.default_rng(5)
  x, emb = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 4, 8), (2, 6)))
  for modulation, changes in (("scale_shift", True), ("double", False)):
    module = UNetBlock(8, **MODULATIONS[modulation])
    params = drawn(module, x, emb)
    larger = {**params, "affine": jax.tree.map(lambda leaf: 25 * leaf, params["affine"])}
    apply = jit(lambda tree, module=module: module.apply({"params": tree}, x, emb))
    assert (far(apply(params), apply(larger)) > 1e-3) == changes


def test_pixel_norm_has_a_derivative_at_zero_and_keeps_bfloat16():
  gradient = jit(jax.grad(lambda x: layers.pixel_norm(x).sum()))(np.zeros((2, 4), np.float32))
  assert np.isfinite(gradient).all()
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 512)) + 6, jnp.bfloat16)
  y = jit(layers.pixel_norm)(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.sqrt(np.square(np.asarray(y, np.float32)).mean(-1)), 1, atol=4e-3)


def test_an_edm2_block_with_a_double_norm_is_the_same_whatever_the_scale_of_its_gain():
  """norm(y) pnorm(s), without parameters of its own: at gain 0 all noise levels are alike."""
  rng = np.random.default_rng(2)
  x, emb = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 4, 8), (2, 6)))
  plain, double = EDM2Block(8), EDM2Block(8, double_norm=True)
  params = drawn(double, x, emb)
  assert jax.tree.structure(params) == jax.tree.structure(drawn(plain, x, emb))
  apply = jit(lambda gain, emb: double.apply({"params": {**params, "emb_gain": gain}}, x, emb))
  at = lambda gain, emb: apply(np.float32(gain), emb)
  np.testing.assert_allclose(at(0.0, emb), at(0.0, 3 - emb), atol=1e-6)
  np.testing.assert_allclose(at(1e4, emb), at(1e5, emb), atol=1e-3)  # beside the 1 that EDM2 adds to it
  assert far(at(2.0, emb), at(2.0, 3 - emb)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["songunet", "adm", "edm2"])
def test_derivatives_of_a_network_with_double_norms(name, x64):
  """sCM differentiates in x and time together, training in the parameters."""
  module = make(name, modulation="double", dtype="float64", dropout=0.0)
  cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
  params, (x, c_noise, _) = cast(random_params(module)), cast(inputs(name))
  net, rng = as_net(module), np.random.default_rng(4)
  direction, rate = jnp.asarray(rng.normal(size=x.shape)), jnp.asarray(rng.normal(size=c_noise.shape))

  @jit
  def probe(params):
    f = lambda h: net(params, x + h * direction, c_noise + h * rate)
    slope = jax.jvp(f, (jnp.zeros(()),), (jnp.ones(()),))[1]
    step = 1e-5
    gradient = jax.grad(lambda tree: jnp.square(net(tree, x, c_noise)).sum())(params)
    return slope, (f(step) - f(-step)) / (2 * step), gradient

  slope, difference, gradient = probe(params)
  scale = float(jnp.abs(slope).max())
  assert scale > 1e-3
  np.testing.assert_allclose(slope, difference, atol=2e-6 * scale)
  told = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
    if {"affine", "emb_linear"} & {p.key for p in path}
  ]
  assert told and all(jnp.isfinite(leaf).all() and jnp.any(leaf) for leaf in told)


def made(name, **fields):
  return shapes_of(make(name, **fields))


@pytest.mark.parametrize(("name", "own"), [("songunet", "shift"), ("adm", "scale_shift"), ("edm2", "scale")])
def test_a_network_that_says_nothing_is_what_it_was(name, own):
  """Stored configs and weights from before there was a choice."""
  assert complete({"network": EXAMPLES["network"][name]}).network.modulation == own
  assert made(name) == made(name, modulation=own)
  with pytest.raises(UserError, match="^modulation = ada"):
    make(name, modulation="ada")


def test_without_adagn_a_block_has_half_the_affine_map():
  without, with_ada = (made("adm", modulation=how) for how in ("shift", "scale_shift"))
  block = lambda tree: tree["enc"]["4x4_block0"]["affine"]["weight"].shape
  assert block(with_ada) == (block(without)[0], 2 * block(without)[1])
  assert made("adm", modulation="double") == with_ada
  assert "small_unet" in NETWORKS and made("small_unet", modulation="double") != made("small_unet")
