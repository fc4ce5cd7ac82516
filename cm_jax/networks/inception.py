"""Inception-2015, the network that FID is measured in (Szegedy et al. 2016; Heusel et al. 2017).

It is TensorFlow's `inception-2015-12-05`, which torch-fidelity and pytorch-fid hold as one state dict and
NVIDIA as a TorchScript; torchvision's Inception v3 is another network (other weights, padding, last pooling).
Parameters carry torch-fidelity's names. Every product of float32 is exact to float32 (HIGHEST) everywhere.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.errors import UserError
from cm_jax.networks.layers import LAYOUT
from cm_jax.types import Array, Params

SIZE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7  # of 17 x 17 positions: 2,023 numbers, about as many as the 2,048 of the pool
EPS = 1e-3  # of its batch norms
_HIGHEST = jax.lax.Precision.HIGHEST
_NORM = ("weight", "bias", "running_mean", "running_var")


class Unit(NamedTuple):
  """A convolution without bias, a batch norm, a ReLU."""

  name: str
  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1
  is_padded: bool = True

  @property
  def padding(self) -> list[tuple[int, int]]:
    return [((k - 1) // 2,) * 2 if self.is_padded else (0, 0) for k in self.window]


Chain = tuple[Unit | tuple[Unit, ...], ...]  # a tuple at its end: units side by side, joined


class Block(NamedTuple):
  """Branches side by side, then a pooling; their channels are joined.

  Attributes:
    name: Before the names of its units.
    branches: The chains of units.
    pool: "average" of the 3x3 pixels that are inside; "max"; or "reduce", the maximum at every other place.
    pooled: Features of the unit behind the pooling; 0 for none.
  """

  name: str
  branches: tuple[Chain, ...]
  pool: str
  pooled: int = 0


def _unit(name: str, features: int, height: int = 1, width: int = 1, stride: int = 1) -> Unit:
  return Unit(name, features, (height, width), stride, is_padded=stride == 1)


def pooled_unit(block: Block) -> Unit:
  """Return the unit behind a block's pooling, which it has where `pooled` is not 0."""
  return _unit("branch_pool", block.pooled)


def _block_35(name: str, pooled: int) -> Block:
  double = (_unit("branch3x3dbl_2", 96, 3, 3), _unit("branch3x3dbl_3", 96, 3, 3))
  branches = (
    (_unit("branch1x1", 64),),
    (_unit("branch5x5_1", 48), _unit("branch5x5_2", 64, 5, 5)),
    (_unit("branch3x3dbl_1", 64), *double),
  )
  return Block(name, branches, "average", pooled)


def _block_17(name: str, inner: int) -> Block:
  single = (_unit("branch7x7_2", inner, 1, 7), _unit("branch7x7_3", 192, 7, 1))
  turns = itertools.cycle(((7, 1), (1, 7)))
  widths = (inner, inner, inner, 192)
  double = (_unit(f"branch7x7dbl_{i}", features, *next(turns)) for i, features in enumerate(widths, start=2))
  branches = (
    (_unit("branch1x1", 192),),
    (_unit("branch7x7_1", inner), *single),
    (_unit("branch7x7dbl_1", inner), *double),
  )
  return Block(name, branches, "average", 192)


def _block_8(name: str, pool: str) -> Block:
  cross = lambda first, second: (_unit(first, 384, 1, 3), _unit(second, 384, 3, 1))
  double = (_unit("branch3x3dbl_1", 448), _unit("branch3x3dbl_2", 384, 3, 3))
  branches = (
    (_unit("branch1x1", 320),),
    (_unit("branch3x3_1", 384), cross("branch3x3_2a", "branch3x3_2b")),
    (*double, cross("branch3x3dbl_3a", "branch3x3dbl_3b")),
  )
  return Block(name, branches, pool, 192)


STEM = (
  (_unit("Conv2d_1a_3x3", 32, 3, 3, 2), Unit("Conv2d_2a_3x3", 32, (3, 3), 1, False)),
  (_unit("Conv2d_2b_3x3", 64, 3, 3),),
  (_unit("Conv2d_3b_1x1", 80), Unit("Conv2d_4a_3x3", 192, (3, 3), 1, False)),
)
_REDUCE_35 = (
  _unit("branch3x3dbl_1", 64),
  _unit("branch3x3dbl_2", 96, 3, 3),
  _unit("branch3x3dbl_3", 96, 3, 3, 2),
)
_REDUCE_17 = (
  *(_unit("branch7x7x3_1", 192), _unit("branch7x7x3_2", 192, 1, 7), _unit("branch7x7x3_3", 192, 7, 1)),
  _unit("branch7x7x3_4", 192, 3, 3, 2),
)
BLOCKS = (
  *(_block_35("Mixed_5b", 32), _block_35("Mixed_5c", 64), _block_35("Mixed_5d", 64)),
  Block("Mixed_6a", ((_unit("branch3x3", 384, 3, 3, 2),), _REDUCE_35), "reduce"),
  *(_block_17("Mixed_6b", 128), _block_17("Mixed_6c", 160), _block_17("Mixed_6d", 160)),
  _block_17("Mixed_6e", 192),
  Block("Mixed_7a", ((_unit("branch3x3_1", 192), _unit("branch3x3_2", 320, 3, 3, 2)), _REDUCE_17), "reduce"),
  *(_block_8("Mixed_7b", "average"), _block_8("Mixed_7c", "max")),
)


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
    sFID's features are those of the ADM evaluator, `mixed_6/conv:0`: the ReLU of Mixed_6d's 1x1 branch, the
    first 7 channels. (Nash et al. 2021 say only that they are of a 17 x 17 layer.)
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


def units() -> Iterator[tuple[str, int, Unit]]:
  """Yield every unit with its full name and the channels it takes."""
  channels = 3
  for unit in itertools.chain.from_iterable(STEM):
    yield unit.name, channels, unit
    channels = unit.features
  for block in BLOCKS:
    given, joined = channels, 0 if block.pooled else channels  # a reduction joins the maxima of what it takes
    pooled = ((pooled_unit(block),),) if block.pooled else ()
    for chain in (*block.branches, *pooled):
      width = given
      for link in chain:
        side_by_side = (link,) if isinstance(link, Unit) else link
        for unit in side_by_side:
          yield f"{block.name}.{unit.name}", width, unit
        width = sum(unit.features for unit in side_by_side)
      joined += width
    channels = joined


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
  wanted = shapes()
  for name in sorted(wanted.keys() | arrays.keys()):
    have = arrays[name].shape if name in arrays else "missing"
    if have != wanted.get(name):
      expected = f"shape {wanted[name]}" if name in wanted else "no such array"
      raise UserError(f"{where}: {name}", have, expected)
    if not math.isfinite(float(np.abs(arrays[name]).max())):
      raise UserError(f"{where}: {name}", "not finite", "finite numbers")


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
