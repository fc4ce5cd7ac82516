"""The forms of layers for CPUs: the same values, gradients, JVPs and gradients of JVPs as the plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm_jax.assembly.mismatches import TRAINING_ONLY
from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS, as_net, kernels, layers
from cm_jax.networks.convolution import convolve, plain, weight_gradient
from tests.compiling import quick_jit

# The shape of x, the window, channels of the output, the padding.
SHAPES = [
  ((6, 5, 7, 3), 3, 4, 1),
  ((7, 4, 6, 2), 3, 5, 0),
  ((2, 30, 24, 2), 5, 3, 2),
  ((4, 3, 3, 3), 2, 2, 1),
  ((3, 4, 5, 6), 1, 2, 0),
  ((2, 2, 2, 2), 5, 2, 3),  # a window of more than the image
]


def operands(shape, window, features, dtype="float64"):
  draw = lambda seed, shape: jax.random.normal(jax.random.key(seed), shape, dtype)
  return draw(1, shape), draw(2, (window, window, shape[-1], features))


def everything(function, *primals):
  """Return value, gradient, JVP and gradient of a JVP of a function of arrays, made a scalar."""
  scalar = lambda *args: jnp.sum(jnp.sin(function(*args)))
  numbers = tuple(range(len(primals)))
  tangents = tuple(jnp.cos(p) for p in primals)

  def moved(*args):
    value, tangent = jax.jvp(scalar, args, tangents)
    return value + tangent**2

  return scalar(*primals), jax.grad(scalar, numbers)(*primals), jax.grad(moved, numbers)(*primals)


def assert_same(ours, theirs, rtol=1e-9):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "window", "features", "padding"), SHAPES)
def test_convolution_is_the_plain_one(shape, window, features, padding, x64):
  x, weight = operands(shape, window, features)
  assert_same(
    *(
      quick_jit(functools.partial(everything, lambda x, w, c=c: c(x, w, padding)))(x, weight)
      for c in (convolve, plain)
    )
  )


@pytest.mark.slow
def test_convolution_of_many_batches(x64):
  x, weight = operands((3, 4, 5, 5, 2), 3, 3)
  weight = jnp.stack([weight] * 3) * jnp.arange(1.0, 4)[:, None, None, None, None]
  for axes in ((0, None), (None, 0), (0, 0)):
    args = tuple(a if axis == 0 else a[0] for a, axis in zip((x, weight), axes, strict=True))

    def losses(conv, args=args, axes=axes):
      gradient = jax.grad(lambda x, w: jnp.sum(conv(x, w, 1) ** 3), (0, 1))
      return quick_jit(jax.vmap(gradient, axes))(*args)

    assert_same(losses(convolve), losses(plain))


def test_weight_gradient_adds_up_in_float32():
  x, g = jnp.full((64, 4, 4, 1), 1, jnp.bfloat16), jnp.full((64, 4, 4, 1), 1.125, jnp.bfloat16)
  gradient = weight_gradient(x, g, 1)
  assert gradient.dtype == jnp.bfloat16 and float(gradient[1, 1, 0, 0]) == 64 * 16 * 1.125


def test_sharded_batch(x64):
  x, weight = operands((16, 4, 4, 3), 3, 4)
  gradient = quick_jit(jax.grad(lambda w, x: jnp.sum(convolve(x, w, 1) ** 3)))
  mesh = Mesh(np.array(jax.devices()), ("data",))
  placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  assert_same(gradient(weight, placed), gradient(weight, x))


@pytest.mark.slow
def test_norm_and_activation(x64):
  module = layers.GroupNorm(silu=True, groups=2)
  x, _ = operands((2, 3, 3, 8), 1, 1)
  weight, bias = jnp.linspace(0.5, 1.5, 8), jnp.linspace(-1, 1, 8)
  apply = lambda x, weight, bias: module.apply({"params": {"weight": weight, "bias": bias}}, x)
  results = []
  for name in ("plain", "cpu"):
    with kernels.using(name):
      results.append(quick_jit(functools.partial(everything, apply))(x, weight, bias))
  assert_same(*results)
  np.testing.assert_allclose(
    apply(x, weight, bias), jax.nn.silu(layers.group_norm(x, weight, bias, 2, 1e-5)), rtol=1e-12
  )


def program(shape, window_shape, stride=1):
  traced = lambda x, w: layers.conv(x, w, window_shape[0] // 2, stride)
  return str(jax.make_jaxpr(traced)(jnp.zeros(shape), jnp.zeros(window_shape)))


def test_where_it_is_chosen():
  wide = ((2, 4, 4, 16), (3, 3, 16, 16))
  assert "convolve" not in program(*wide)  # several devices
  with kernels.using("cpu"):
    assert "convolve" in program(*wide)
    assert "convolve" not in program(*wide, stride=2)
    assert "convolve" not in program((2, 4, 4, 3), (3, 3, 3, 16))
    assert "convolve" in program((2, 4, 4, 16), (1, 1, 16, 16))
  with kernels.using("plain"):
    assert "convolve" not in program(*wide)


def test_auto_takes_it_for_large_arrays(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  window = (3, 3, 32, 32)
  assert "convolve" not in program((63, 8, 16, 32), window)  # 1,032,192 bytes
  assert "convolve" in program((64, 8, 16, 32), window)


def test_option_of_a_network():
  size = {"img_resolution": 4, "in_channels": 16, "out_channels": 16}
  for name, chosen in (("plain", False), ("cpu", True)):
    module = NETWORKS["toy"](**size, width=16, kernels=name)
    params = jax.eval_shape(
      lambda m=module: m.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)), jnp.zeros(1))
    )
    traced = str(jax.make_jaxpr(as_net(module))(params["params"], jnp.zeros((2, 4, 4, 16)), jnp.zeros(2)))
    assert ("convolve" in traced) == chosen
  with pytest.raises(UserError, match="kernels"):
    NETWORKS["toy"](**size, kernels="fast")


def test_what_training_alone_sets_is_of_every_network():
  assert TRAINING_ONLY["kernels"] in kernels.KERNELS
