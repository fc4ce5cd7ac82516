"""LPIPS (Zhang et al. 2018): a learned perceptual distance, CM's metric. Its weights are the user's.

d(a, b) = sum_l mean_hw sum_c w_lc (n_lc(a) - n_lc(b))^2,  n_l VGG16's l-th features over their norm
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cm_jax.errors import UserError, one_of
from cm_jax.networks.layers import conv
from cm_jax.storage.weights import check_arrays, load_arrays, save_arrays
from cm_jax.types import Array, Params

# torchvision's numbers of VGG16's convolutions by block; a block ends at a tap (relu1_2, 2_2, 3_3, 4_3, 5_3),
# then pooling.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
MAKE = '"cm_jax convert" makes it from LPIPS\' published files'
POOLINGS: dict[str, Callable[..., Array]] = {"max": jnp.max, "average": jnp.mean}
_EPS = 1e-10
# ImageNet's mean and deviation for images in [-1, 1] instead of [0, 1]
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def shapes() -> dict[str, tuple[int, ...]]:
  """Return the shape of every weight by name: "features.0.weight" [3,3,in,out], "lin0" [out], ...

  >>> shapes()["features.0.weight"], shapes()["lin4"], len(shapes())
  ((3, 3, 3, 64), (512,), 31)
  """
  result: dict[str, tuple[int, ...]] = {}
  before = 3
  for block, (numbers, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
    for number in numbers:
      result[f"features.{number}.weight"], result[f"features.{number}.bias"] = (3, 3, before, width), (width,)
      before = width
    result[f"lin{block}"] = (width,)
  return result


@dataclasses.dataclass(frozen=True)
class LPIPS:
  """The distance d(a, b, params) -> [B] of images in [-1, 1]; differentiable both ways, to any order.

  Args:
    weights: A safetensors file that `cm_jax convert --from=lpips` wrote of VGG16's and the heads' published
      weights.
    size: Images smaller than this are enlarged to size x size, bilinearly (CM appendix C: 224 for 32x32 and
      64x64); larger ones are not touched (none at 256x256). 0 for never.
    pooling: VGG16's between blocks: "max", its own, which jcm and the `lpips` package take (CIFAR-10's rows),
      or "average", piq's `replace_pooling=True`, which OpenAI's torch code takes (ImageNet's and LSUN's).

  Note:
    The two poolings are two distances. LPIPS' features come from ImageNet labels: an FID measured after
    training with it is flattered.
  """

  weights: str = ""
  size: int = 224
  pooling: str = "max"

  is_norm: ClassVar[bool] = False

  def __post_init__(self):
    if self.pooling not in POOLINGS:
      raise UserError("pooling", self.pooling, one_of(POOLINGS, self.pooling))

  def load(self) -> Params:
    """Read the weights file; never random weights.

    Raises:
      UserError: No file given or there, or not one with VGG16's and the heads' arrays.
    """
    if not self.weights:
      raise UserError("weights", "", f"a file: {MAKE}")
    if not epath.Path(self.weights).exists():
      raise UserError("weights", self.weights, f"a file that exists: {MAKE}")
    arrays = load_arrays(self.weights, "weights")
    check(arrays, str(self.weights))
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}

  def abstract(self) -> Params:
    """Return the shapes of the weights, without the file."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes().items()}

  def __call__(self, a: Array, b: Array, params: Params = None) -> Array:
    """Return d(a, b), [B]; a, b [B,H,W,C] with C = 1 or 3."""
    if params is None:
      raise ValueError("LPIPS needs its weights: distance_params from LPIPS.load()")
    total: Array | float = 0.0
    taps = (features(params, self._prepared(image), self.pooling) for image in (a, b))
    for block, (left, right) in enumerate(zip(*taps, strict=True)):
      difference = jnp.square(unit(left) - unit(right))
      total = total + jnp.mean(difference @ params[f"lin{block}"].astype(difference.dtype), axis=(1, 2))
    return jnp.asarray(total)

  def _prepared(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    if channels not in (1, 3):
      raise ValueError(f"LPIPS is for images of 1 or 3 channels, not {channels}")
    if channels == 1:
      x = jnp.repeat(x, 3, axis=3)
    if min(height, width) < self.size:
      x = jax.image.resize(x, (batch, self.size, self.size, 3), "bilinear", antialias=False)
    shift, scale = jnp.asarray(_SHIFT, x.dtype), jnp.asarray(_SCALE, x.dtype)
    return (x - shift[None, None, None]) / scale[None, None, None]


def features(params: Params, x: Array, pooling: str = "max") -> list[Array]:
  """Return VGG16's five taps of normalised images x [B,H,W,3]."""
  taps = []
  for block, numbers in enumerate(BLOCKS):
    if block:
      x = pool(x, pooling)
    for number in numbers:
      weight, bias = (params[f"features.{number}.{kind}"].astype(x.dtype) for kind in ("weight", "bias"))
      x = jax.nn.relu(conv(x, weight, padding=1) + bias[None, None, None])
    taps.append(x)
  return taps


def pool(x: Array, pooling: str = "max") -> Array:
  """Return the maxima or averages of 2x2 pixels, an odd last row or column left out.

  A maximum over an axis has derivatives of every order.

  >>> [pool(jnp.arange(6.0).reshape(1, 2, 3, 1), pooling).ravel().tolist() for pooling in POOLINGS]
  [[4.0], [2.0]]
  """
  batch, height, width, channels = x.shape
  x = x[:, : height // 2 * 2, : width // 2 * 2]
  return POOLINGS[pooling](x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def unit(x: Array) -> Array:
  """Return x over its norm along the channels plus 1e-10; 0, with gradient 0, where x is 0.

  >>> unit(jnp.array([3.0, 4.0])).round(3).tolist(), unit(jnp.zeros(2)).tolist()
  ([0.6000000238418579, 0.800000011920929], [0.0, 0.0])
  """
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  return x / (norm + _EPS)


def check(arrays: dict[str, np.ndarray], where: str) -> None:
  """Check names and shapes of a set of weights.

  Raises:
    UserError: Names the first array that is missing, left over, of another shape, or not finite.
  """
  check_arrays(arrays, shapes(), where)


def save(path: epath.PathLike, arrays: dict[str, np.ndarray], about: dict[str, str]) -> None:
  """Write a weights file, whole or not at all, with what it was made from in its metadata.

  Raises:
    UserError: Arrays that are not VGG16's and the heads', or a place that cannot be written.
  """
  check(arrays, str(path))
  save_arrays(path, {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, about)
