"""OpenAI's checkpoints (openai/consistency_models): a bare state dict, its architecture inferred.

The architecture is read off the names and shapes of the parameters.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cm_jax.convert.foreign import AS_IT_IS, Choices, Foreign, by_name, check_size, torch_layout
from cm_jax.convert.readers.pickles import Bounded, Refused
from cm_jax.convert.readers.torch_files import Tensor, is_legacy, read_legacy, read_zip

LICENCE = "MIT"
# arguments of UNetModel that change neither its parameters nor its function
_NO_EFFECT = (
  *("use_checkpoint", "use_fp16", "use_new_attention_order"),
  *("num_classes", "image_size", "in_channels"),
)


class Published(NamedTuple):
  """What is not in a file, only in its name: the second noise level is that of two-step sampling."""

  precond: str
  kind: str
  middle: float | None = None


# the indices of scripts/launch.sh ("--ts 0,22,39 --steps 40") as noise levels
PUBLISHED: Mapping[str, Published] = {
  "edm_imagenet64_ema": Published("edm", "diffusion"),
  "edm_bedroom256_ema": Published("edm", "diffusion"),
  "edm_cat256_ema": Published("edm", "diffusion"),
  "cd_imagenet64_l2": Published("boundary", "consistency", 1.382),
  "cd_imagenet64_lpips": Published("boundary", "consistency", 1.382),
  "ct_imagenet64": Published("boundary", "consistency", 1.913),
  "cd_bedroom256_l2": Published("boundary", "consistency", 3.520),
  "cd_bedroom256_lpips": Published("boundary", "consistency", 4.366),
  "ct_bedroom256": Published("boundary", "consistency", 3.991),
  "cd_cat256_l2": Published("boundary", "consistency"),
  "cd_cat256_lpips": Published("boundary", "consistency"),
  "ct_cat256": Published("boundary", "consistency", 5.249),
}


def read(path: Path, choices: Choices = AS_IT_IS) -> Foreign:
  """Read a .pt state dict of OpenAI's UNet ("cd_imagenet64_lpips.pt"), zip or legacy, float16 or float32.

  Raises:
    Refused: Another architecture, or a file that is not safe or not whole.
  """
  arrays = read_state_dict(path)
  kwargs, assumed = infer(arrays)
  precond, kind, middle = PUBLISHED.get(path.stem, Published(*by_name(path)))
  assumed += choices.unsaid(precond, kind)
  return describe(kwargs, arrays, precond, middle, assumed, choices.kind or kind)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """Return the arrays of a file that torch.save wrote of a state dict, zip or legacy, by name.

  Raises:
    Refused: It holds anything else.
  """
  with open(path, "rb") as file:
    bounded = Bounded(file)
    head = bounded.read(16)
    bounded.seek(0)
    content = read_legacy(bounded) if is_legacy(head) else read_zip(bounded)
    is_dict = isinstance(content, dict) and len(content) > 0
    if not is_dict or not all(isinstance(value, Tensor) for value in content.values()):
      raise Refused("a state dict: names and tensors, nothing else")
    arrays = {str(name): tensor.array() for name, tensor in content.items()}
    check_size(arrays, bounded.size)
  return arrays


def describe(
  kwargs: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  precond: str,
  middle: float | None = None,
  assumed: tuple[str, ...] = (),
  kind: str | None = None,
) -> Foreign:
  """Describe a UNetModel made with these constructor arguments."""
  fields = {key: value for key, value in kwargs.items() if key not in _NO_EFFECT}
  size, channels, classes = kwargs["image_size"], kwargs["in_channels"], kwargs.get("num_classes") or 0
  if fields["out_channels"] == channels:
    fields.pop("out_channels")
  return Foreign(
    arrays=arrays,
    network={"name": "openai_unet", **fields},
    precond={"name": precond, "time_scale": 1000.0},
    noise={"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0},
    image_shape=(size, size, channels),
    num_classes=classes,
    layout=torch_layout(embeddings=("label_emb.weight",)),
    peer="openai/consistency_models",
    licence=LICENCE,
    kind=kind,
    sigmas_by_nfe={1: [80.0]} | ({2: [80.0, middle]} if middle else {}) if kind == "consistency" else {},
    clip=True,  # of D too, for diffusion models (image_sample.py: clip_denoised)
    renoise="cm" if kind == "consistency" else None,
    assumed=assumed,
  )


def infer(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Return UNetModel's constructor arguments from its state dict, and what of them had to be assumed.

  A level of the decoder ends with a block that doubles the resolution, which holds a second residual block
  (or a convolution): the first such block gives the number of blocks per level. The side of the images is not
  in the file: published networks end at 8x8.

  Raises:
    Refused: It is not a UNetModel.
  """
  try:
    return _infer(arrays)
  except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
    raise Refused(f"a known architecture: OpenAI's UNet has {str(error)[:100]}") from None


def _infer(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], tuple[str, ...]]:
  shape = {name: array.shape for name, array in arrays.items()}
  width, channels = shape["time_embed.0.weight"][1], shape["input_blocks.0.0.weight"][1]
  outputs = 1 + max(int(n) for name in shape for n in re.findall(r"^output_blocks\.(\d{1,4})\.", name))
  ups = [
    i
    for i in range(outputs)
    if any(
      f"output_blocks.{i}.{j}.{part}.weight" in shape for j in (1, 2) for part in ("in_layers.2", "conv")
    )
  ]
  per_level = ups[0] + 1 if ups else outputs
  levels, rest = divmod(outputs, per_level)
  if rest or per_level < 2 or levels > 16:
    raise ValueError("as many blocks in every level of output_blocks")
  firsts = [1 + level * per_level for level in range(levels)]
  mults = [shape[f"input_blocks.{i}.0.out_layers.3.weight"][0] / width for i in firsts]
  if any(mult % 1 for mult in mults):
    raise ValueError(f"channels that are multiples of {width}")
  attention = [2**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shape]
  out_channels, attended = (
    shape["out.2.weight"][0],
    [width * int(mults[int(math.log2(ds))]) for ds in attention],
  )
  head = min([64, *attended, width * int(mults[-1])])
  size = 8 << (levels - 1)
  kwargs = {
    "image_size": size,
    "in_channels": channels,
    "model_channels": width,
    "out_channels": out_channels,
    "num_res_blocks": per_level - 1,
    "attention_resolutions": attention,
    "channel_mult": [int(mult) for mult in mults],
    "num_head_channels": head,
    "resblock_updown": not any(
      ".op." in name or re.fullmatch(r"output_blocks\.\d+\.\d\.conv\.weight", name) for name in shape
    ),
    "num_classes": shape["label_emb.weight"][0] if "label_emb.weight" in shape else None,
    "use_scale_shift_norm": shape["input_blocks.1.0.emb_layers.1.weight"][0]
    == 2 * shape["input_blocks.1.0.out_layers.3.weight"][0],
  }
  return kwargs, (f"images of {size}x{size}", f"attention heads of {head} channels")
