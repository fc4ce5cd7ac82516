"""jcm's checkpoints (openai/consistency_models_cifar10): a flax state in msgpack, its architecture inferred.

The architecture is read off the names and shapes of the parameters.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cm_jax.convert.foreign import AS_IT_IS, Choices, Foreign, by_name, own_layout
from cm_jax.convert.readers.msgpack_files import read_msgpack
from cm_jax.convert.readers.pickles import Refused
from cm_jax.storage import weights

LICENCE = "Apache-2.0"
# keys of `config.model` that are fields of ours; of the others these two must have the published value
OPTIONS = (
  *("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "resamp_with_conv", "conditional"),
  *("fir", "fir_kernel", "skip_rescale", "resblock_type", "progressive", "progressive_input"),
  *("progressive_combine", "embedding_type", "fourier_scale", "init_scale", "nonlinearity"),
)
NOISE = {
  "t_min": 0.002,
  "t_max": 80.0,
  "data_std": 0.5,
  "rho": 7.0,
}  # of a `config.model` that leaves them out
OUR_NAMES = {"t_min": "sigma_min", "t_max": "sigma_max", "data_std": "sigma_data", "rho": "rho"}
FIXED = {"double_heads": False, "normalization": "GroupNorm"}
TREES = ("params_ema", "target_params", "params")
# The second noise level of two-step sampling (recipes.md section 3), by the published folder
PUBLISHED: Mapping[str, float] = {"cd-lpips": 0.585}


def read(path: Path, choices: Choices = AS_IT_IS) -> Foreign:
  """Read a checkpoint ("cd-lpips/checkpoints/checkpoint_80", "edm_cifar10_ema").

  Args:
    path: The file.
    choices: `choices.tree` says which of its parameters; its authors sample from "params_ema". A
      `choices.network` with "nf" is the whole architecture, with `choices.image_size`, and nothing is
      inferred.

  Raises:
    Refused: It has no such tree, is of another architecture, or not whole.
  """
  tree = choices.tree
  state = read_msgpack(path.read_bytes())
  trees = [name for name in TREES if isinstance(state, dict) and isinstance(state.get(name), dict)]
  if tree not in trees:
    found = ", ".join(trees) or f"none of {', '.join(TREES)}"
    raise Refused(f"a training state with {tree[:50]}; this one has {found} (tree chooses)")
  arrays = {name.replace("/", "."): array for name, array in weights.flatten(state[tree]).items()}
  if not all(isinstance(array, np.ndarray) for array in arrays.values()):
    raise Refused(f"arrays in {tree}, nothing else")
  said = "nf" in choices.network
  config, size, assumed = (choices.network, choices.image_size or 0, ()) if said else infer(arrays)
  precond, kind = by_name(path)
  assumed = (*assumed, f"{tree} of the state", *choices.unsaid(precond, kind))
  middle = next((PUBLISHED[part] for part in path.parts if part in PUBLISHED), None)
  return describe(config, size, arrays, precond, middle, assumed, choices.kind or kind)


def describe(
  config: Mapping[str, Any],
  image_size: int,
  arrays: Mapping[str, np.ndarray],
  precond: str,
  middle: float | None = None,
  assumed: tuple[str, ...] = (),
  kind: str | None = None,
) -> Foreign:
  """Describe an NCSNpp made from this `config.model`."""
  kernel = arrays.get("Conv_0.kernel")
  if kernel is None or kernel.ndim != 4:
    raise Refused("a known architecture: jcm's NCSNpp has Conv_0.kernel")
  if image_size < 1:
    raise Refused("image_size beside a whole network")
  return Foreign(
    arrays=arrays,
    network={"name": "jcm_ncsnpp", **options(config)},
    precond={"name": precond},
    noise={ours: {**NOISE, **config}[theirs] for theirs, ours in OUR_NAMES.items()},
    image_shape=(image_size, image_size, kernel.shape[2]),
    num_classes=0,
    layout=own_layout,
    peer="openai/consistency_models_cifar10",
    licence=LICENCE,
    kind=kind,
    sigmas_by_nfe={1: [80.0]} | ({2: [80.0, middle]} if middle else {}) if kind == "consistency" else {},
    clip=True if kind == "consistency" else None,
    renoise="cm" if kind == "consistency" else None,
    assumed=assumed,
  )


def options(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return the fields of our network in a `config.model`.

  >>> options({"nf": 8, "ema_rate": 0.999, "double_heads": False})
  {'nf': 8}

  Raises:
    Refused: A kind of network that was never published.
  """
  for key, value in FIXED.items():
    if config.get(key, value) != value:
      raise Refused(f"a known architecture: NCSNpp with {key} = {value}")
  return {key: config[key] for key in OPTIONS if key in config}


def infer(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int, tuple[str, ...]]:
  """Return `config.model` and the side of the images from the parameters, and what of them had to be assumed.

  Modules are numbered in the order they run: L levels of n blocks, a block that halves between them, two in
    the middle, then n + 1 a
  level with one that doubles between, so there are 2 L n + 3 L blocks; and L - 1 pyramid convolutions.

  Raises:
    Refused: It is not the NCSNpp of the published configs.
  """
  try:
    return _infer({name: array.shape for name, array in arrays.items()})
  except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
    raise Refused(f"a known architecture: jcm's NCSNpp has {str(error)[:100]}") from None


def _infer(shape: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int, tuple[str, ...]]:
  count = lambda module: len({name.split(".")[0] for name in shape if re.match(module + r"_\d+\.", name)})
  width, levels = shape["Conv_0.kernel"][3], count("Downsample") + 1
  blocks, rest = divmod(count("ResnetBlockBigGANpp") - 3 * levels, 2 * levels)
  if rest or blocks < 1 or levels > 16:
    raise ValueError("as many ResnetBlockBigGANpp in every level")
  if "GaussianFourierProjection_0.W" not in shape:
    raise KeyError("GaussianFourierProjection_0.W")
  firsts = [level * (blocks + 1) for level in range(levels)]
  mults = [shape[f"ResnetBlockBigGANpp_{i}.Conv_1.kernel"][3] / width for i in firsts]
  if any(mult % 1 for mult in mults):
    raise ValueError(f"channels that are multiples of {width}")
  attending, rest = divmod(count("AttnBlockpp") - 1, blocks + 1)
  if rest or not 0 <= attending <= levels:
    raise ValueError("attention in whole levels")
  size = 8 << (levels - 1)
  # which level attends cannot be told where widths are equal: all published networks attend at half
  # resolution
  attention = (
    [size >> level for level in range(1, attending + 1)]
    if attending < levels
    else [size >> level for level in range(levels)]
  )
  config = {
    "nf": width,
    "ch_mult": [int(mult) for mult in mults],
    "num_res_blocks": blocks,
    "attn_resolutions": attention,
  }
  return config, size, (f"images of {size}x{size}", f"attention at {attention or 'no level'}")
