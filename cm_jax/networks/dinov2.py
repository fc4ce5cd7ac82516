"""DINOv2 (Oquab et al. 2023), a vision transformer whose class token FD-DINOv2 is measured in.

Parameters carry the names of facebookresearch/dinov2. Every product of float32 is exact to float32 (HIGHEST)
everywhere. ViT-S, B and L of 14x14 patches without register tokens; ViT-g has another MLP.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.storage.weights import check_arrays
from cm_jax.types import Array, Params

SIDE = 224  # of the images that FD-DINOv2 is measured on
PATCH = 14
GRID = 37  # patches a side that the position embeddings are stored for: images of 518 pixels
HEAD = 64  # channels of an attention head
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
OFFSET = 0.1  # what the original adds to the number of patches where it scales the position embeddings
_EPS = 1e-6  # of the layer norms
_CUBIC = -0.75  # the parameter of torch's bicubic interpolation
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Size(NamedTuple):
  """How large a network is."""

  features: int
  depth: int
  grid: int = GRID


SIZES = {"dinov2-b": Size(768, 12), "dinov2-l": Size(1024, 24)}


def dinov2(params: Params, x: Array) -> Array:
  """Return the class token behind the last norm, [B, features], of x [B, S, S, 3] from `normalized`.

  Args:
    params: From `params_of`, for this S.
    x: S a multiple of 14.
  """
  batch, side, _, channels = x.shape
  n = side // PATCH
  patches = (
    x.reshape(batch, n, PATCH, n, PATCH, channels).transpose(0, 1, 3, 2, 4, 5).reshape(batch, n * n, -1)
  )
  kernel = params["patch_embed.proj.weight"].reshape(patches.shape[-1], -1)
  tokens = _einsum("bnp,pd->bnd", patches, kernel) + params["patch_embed.proj.bias"][None, None]
  first = jnp.broadcast_to(params["cls_token"][None, None], (batch, 1, tokens.shape[-1]))
  x = jnp.concatenate([first, tokens], axis=1) + params["pos_embed"][None]
  for block in range(depth_of(params)):
    x = _block(params, f"blocks.{block}.", x)
  return _norm(params, "norm", x[:, :1])[:, 0]


def _block(params: Params, path: str, x: Array) -> Array:
  scale = lambda name: params[f"{path}{name}.gamma"][None, None]
  x = x + scale("ls1") * _attention(params, f"{path}attn.", _norm(params, f"{path}norm1", x))
  inner = jax.nn.gelu(_linear(params, f"{path}mlp.fc1", _norm(params, f"{path}norm2", x)), approximate=False)
  return x + scale("ls2") * _linear(params, f"{path}mlp.fc2", inner)


def _attention(params: Params, path: str, x: Array) -> Array:
  batch, count, width = x.shape
  qkv = _linear(params, f"{path}qkv", x).reshape(batch, count, 3, width // HEAD, HEAD)
  q, k, v = (qkv[:, :, i] for i in range(3))
  weights = jax.nn.softmax(_einsum("bqhd,bkhd->bhqk", q * HEAD**-0.5, k), axis=-1)
  return _linear(params, f"{path}proj", _einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, count, width))


def _linear(params: Params, name: str, x: Array) -> Array:
  return _einsum("bni,io->bno", x, params[f"{name}.weight"]) + params[f"{name}.bias"][None, None]


def _norm(params: Params, name: str, x: Array) -> Array:
  centred = x - x.mean(-1, keepdims=True)
  unit = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + _EPS)
  return unit * params[f"{name}.weight"][None, None] + params[f"{name}.bias"][None, None]


def normalized(images: Array) -> Array:
  """Return uint8 images [B,H,W,3] as the network takes them: (p / 255 - mean) / deviation of ImageNet."""
  shift, scale = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (MEAN, DEVIATION))
  return (images.astype(jnp.float32) / 255 - shift) / scale


def depth_of(arrays: Mapping[str, object]) -> int:
  """Return the number of blocks that a set of arrays has.

  >>> depth_of({"blocks.0.norm1.weight": 0, "blocks.1.norm1.weight": 0, "norm.weight": 0})
  2
  """
  return sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in arrays)


def params_of(arrays: Mapping[str, np.ndarray], side: int = SIDE, offset: float = OFFSET) -> Params:
  """Return the parameters for images of a side: the position embeddings at its grid.

  Args:
    arrays: As `shapes` says.
    side: A multiple of 14.
    offset: As for `interpolated`.
  """
  positions = np.asarray(arrays["pos_embed"], np.float64)
  grid = math.isqrt(len(positions) - 1)
  found = interpolated(positions[1:].reshape(grid, grid, -1), side // PATCH, offset)
  at_grid = np.concatenate([positions[:1], found.reshape(-1, positions.shape[1])])
  return {name: np.float32(array) for name, array in {**arrays, "pos_embed": at_grid}.items()}


def interpolated(grid: np.ndarray, size: int, offset: float = OFFSET) -> np.ndarray:
  """Return position embeddings [G, G, D] at size x size places, bicubic, as torch's `interpolate` has it.

  y[i] = sum_k w(s - k) x[k],  s = (i + 1/2) G / (size + offset) - 1/2

  The kernel w has a = -3/4; places outside are those at the edge, and nothing is smoothed first.

  Args:
    grid: The embeddings as stored.
    size: Patches a side.
    offset: 0.1 in the original code, which so avoids an error of rounding; 0 in transformers.

  >>> interpolated(np.arange(4.0).reshape(2, 2, 1), 2).ravel().tolist()
  [0.0, 1.0, 2.0, 3.0]
  """
  if len(grid) == size:
    return grid
  place = (np.arange(size) + 0.5) * (len(grid) / (size + offset)) - 0.5
  before = np.floor(place).astype(int)
  across = np.zeros((size, len(grid)))
  for tap in range(-1, 3):
    index = np.clip(before + tap, 0, len(grid) - 1)
    np.add.at(across, (np.arange(size), index), _kernel(np.abs(place - before - tap)))
  return np.einsum("ai,bj,ijd->abd", across, across, grid, optimize=True)


def _kernel(distance: np.ndarray) -> np.ndarray:
  near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
  far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
  return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
  """Return the shape of every stored array by name, in our layout: HWIO, [in, out].

  >>> found = shapes(SIZES["dinov2-b"])
  >>> found["pos_embed"], found["blocks.11.attn.qkv.weight"], len(found)
  ((1370, 768), (768, 2304), 174)
  """
  width = size.features
  linear = lambda name, into, out: {f"{name}.weight": (into, out), f"{name}.bias": (out,)}
  norm = lambda name: {f"{name}.weight": (width,), f"{name}.bias": (width,)}
  found: dict[str, tuple[int, ...]] = {
    "cls_token": (width,),
    "pos_embed": (size.grid**2 + 1, width),
    "patch_embed.proj.weight": (PATCH, PATCH, 3, width),
    "patch_embed.proj.bias": (width,),
  }
  for number in range(size.depth):
    path = f"blocks.{number}."
    found |= norm(f"{path}norm1") | norm(f"{path}norm2")
    found |= linear(f"{path}attn.qkv", width, 3 * width) | linear(f"{path}attn.proj", width, width)
    found |= linear(f"{path}mlp.fc1", width, 4 * width) | linear(f"{path}mlp.fc2", 4 * width, width)
    found |= {f"{path}ls1.gamma": (width,), f"{path}ls2.gamma": (width,)}
  return found | norm("norm")


def check(arrays: Mapping[str, np.ndarray], size: Size, where: str) -> None:
  """Check names and shapes of a set of weights.

  Raises:
    UserError: Names the first array that is missing, left over, of another shape, or not finite.
  """
  check_arrays(arrays, shapes(size), where)
