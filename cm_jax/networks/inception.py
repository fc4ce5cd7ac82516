"""Inception-2015, the network that FID is measured in (Szegedy et al. 2016; Heusel et al. 2017).

It is TensorFlow's `inception-2015-12-05`, which torch-fidelity and pytorch-fid hold as one state dict and
NVIDIA as a TorchScript; torchvision's Inception v3 is another network (other weights, padding, last pooling).
Parameters carry torch-fidelity's names. Every product of float32 is exact to float32 (HIGHEST) everywhere.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.networks.inception_units import BLOCKS, STEM, Block, Chain, Unit, pooled_unit, units
from cm_jax.networks.layers import LAYOUT
from cm_jax.storage.weights import check_arrays
from cm_jax.types import Array, Params

SIZE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7  # of 17 x 17 positions: 2,023 numbers, about as many as the 2,048 of the pool
EPS = 1e-3  # of its batch norms
_HIGHEST = jax.lax.Precision.HIGHEST
_NORM = ("weight", "bias", "running_mean", "running_var")


class Outputs(NamedTuple):
  """What the network computes; a program that uses some of it computes no more.

  Attributes:
    tap64, tap192, tap768: [B, 64], [B, 192], [B, 768]: means over the positions, torch-fidelity's taps.
    pool: [B, 2048]: FID's features.
    spatial: [B, 17 * 17 * 7], by row, column, channel: sFID's.
    logits_unbiased, logits: [B, 1008]: of the classes, without the last layer's bias and with it.
  """

  tap64: Array
  tap192: Array
  tap768: Array
  pool: Array
  spatial: Array
  logits_unbiased: Array
  logits: Array


def inception(params: Params, x: Array) -> Outputs:
  """Evaluate the network on x [B, 299, 299, 3], from `prepared`.

  Args:
    params: From `folded`.
    x: Pixels, (p - 128) / 128.

  Note:
    sFID's features are those of ADM's evaluator, `mixed_6/conv:0`, its first 7 channels. That operation is
    the ReLU behind the batch norm of Mixed_6d's 1x1 branch: the graph has .../Conv2D, .../batchnorm,
    .../control_dependency and then the scope's own name, which the next convolution takes. They are the
    first channels of the whole block too. (Nash et al. 2021 say only that they are of a 17 x 17 layer.)
  """
  head, middle, tail = STEM
  x = _max_pool(_chain(params, "", _chain(params, "", x, head), middle), 2)
  tap64 = x.mean((1, 2))
  x = _max_pool(_chain(params, "", x, tail), 2)
  tap192 = x.mean((1, 2))
  tap768 = spatial = x
  for block in BLOCKS:
    branches = _branches(params, x, block)
    if block.name == "Mixed_6d":
      spatial = branches[0][..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    x = jnp.concatenate(branches, axis=3)
    if block.name == "Mixed_6e":
      tap768 = x.mean((1, 2))
  pool = x.mean((1, 2))
  unbiased = jnp.dot(pool, params["fc"]["weight"], precision=_HIGHEST)
  logits = unbiased + params["fc"]["bias"][None]
  return Outputs(tap64, tap192, tap768, pool, spatial, unbiased, logits)


def _branches(params: Params, x: Array, block: Block) -> list[Array]:
  path = f"{block.name}."
  found = [_chain(params, path, x, chain) for chain in block.branches]
  if block.pool == "reduce":
    return [*found, _max_pool(x, 2)]
  pooled = _average_pool(x) if block.pool == "average" else _max_pool(x, 1)
  return [*found, _apply(params, path, pooled, pooled_unit(block))]


def _chain(params: Params, path: str, x: Array, chain: Chain) -> Array:
  for link in chain:
    if isinstance(link, Unit):
      x = _apply(params, path, x, link)
    else:
      x = jnp.concatenate([_apply(params, path, x, unit) for unit in link], axis=3)
  return x


def _apply(params: Params, path: str, x: Array, unit: Unit) -> Array:
  weight, bias = (params[path + unit.name][kind] for kind in ("weight", "bias"))
  if unit.window == (1, 1):
    y = jnp.dot(x, weight[0, 0], precision=_HIGHEST)
  else:
    strides = (unit.stride, unit.stride)
    y = jax.lax.conv_general_dilated(
      x, weight, strides, unit.padding, dimension_numbers=LAYOUT, precision=_HIGHEST
    )
  return jax.nn.relu(y + bias[None, None, None])


def _max_pool(x: Array, stride: int) -> Array:
  around = ((0, 0), (1, 1), (1, 1), (0, 0)) if stride == 1 else ((0, 0),) * 4
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), around)


def _average_pool(x: Array) -> Array:
  """Return the means over 3x3 pixels; at an edge, over those inside."""
  around = ((0, 0), (1, 1), (1, 1), (0, 0))
  summed = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), around)
  inside = lambda size: np.minimum(np.arange(size) + 2, size) - np.maximum(np.arange(size) - 1, 0)
  count = np.outer(inside(x.shape[1]), inside(x.shape[2]))
  return summed * jnp.asarray(1 / count, x.dtype)[None, :, :, None]


def prepared(images: Array) -> Array:
  """Return images [B,H,W,C] of any size, C = 1 or 3, pixels in [0, 255], as the network takes them.

  >>> prepared(jnp.full((1, 5, 2, 1), 192, jnp.uint8))[0, 7, 298].tolist()
  [0.5, 0.5, 0.5]
  """
  if images.shape[3] == 1:
    images = jnp.repeat(images, 3, axis=3)
  return (resized(images) - 128) / 128


def resized(images: Array, size: int = SIZE) -> Array:
  """Resize [B,H,W,C] to size x size as TensorFlow 1's ResizeBilinear: float32, no half-pixel offset.

  y[i] = (1 - l) x[floor s] + l x[min(floor s + 1, W - 1)],  s = i W / size, l = s - floor s

  >>> resized(jnp.array([0.0, 3.0]).reshape(1, 1, 2, 1), 4)[0, 0, :, 0].tolist()
  [0.0, 1.5, 3.0, 3.0]
  """
  x = images.astype(jnp.float32)
  (top, bottom, down), (left, right, across) = (_neighbours(n, size) for n in images.shape[1:3])
  between = lambda a, b, share: a + (b - a) * jnp.asarray(share)
  rows = lambda index: between(x[:, index][:, :, left], x[:, index][:, :, right], across[None, None, :, None])
  return between(rows(top), rows(bottom), down[None, :, None, None])


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return the pixel before each place, that behind, and the share of that behind, in float32."""
  place = np.arange(size, dtype=np.float32) * (np.float32(length) / np.float32(size))
  before = np.minimum(np.floor(place).astype(np.int32), length - 1)
  return before, np.minimum(before + 1, length - 1), place - before.astype(np.float32)


def shapes() -> dict[str, tuple[int, ...]]:
  """Return the shape of every stored array by name, in our layout: HWIO, [in, out].

  >>> shapes()["Mixed_7c.branch3x3_2a.conv.weight"], shapes()["fc.weight"], len(shapes())
  ((1, 3, 384, 384), (2048, 1008), 472)
  """
  found: dict[str, tuple[int, ...]] = {}
  for name, channels, unit in units():
    found[f"{name}.conv.weight"] = (*unit.window, channels, unit.features)
    found |= {f"{name}.bn.{kind}": (unit.features,) for kind in _NORM}
  return {**found, "fc.weight": (2048, CLASSES), "fc.bias": (CLASSES,)}


def check(arrays: Mapping[str, np.ndarray], where: str) -> None:
  """Check names and shapes of a set of weights.

  Raises:
    UserError: Names the first array that is missing, left over, of another shape, or not finite.
  """
  check_arrays(arrays, shapes(), where)


def folded(arrays: Mapping[str, np.ndarray]) -> Params:
  """Return the parameters: each batch norm folded, in float64, into the convolution before it.

  w' = w g / sqrt(v + eps),  b' = b - m g / sqrt(v + eps)

  Args:
    arrays: As `shapes` says.
  """
  params = {}
  for name, _, _ in units():
    gain, bias, mean, variance = (np.float64(arrays[f"{name}.bn.{kind}"]) for kind in _NORM)
    scale = gain / np.sqrt(variance + EPS)
    weight = arrays[f"{name}.conv.weight"] * scale[None, None, None]
    params[name] = {"weight": np.float32(weight), "bias": np.float32(bias - mean * scale)}
  fc = {kind: np.float32(arrays[f"fc.{kind}"]) for kind in ("weight", "bias")}
  return {**params, "fc": fc}
