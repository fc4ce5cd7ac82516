"""DDPM++ in PyTorch, as EDM's SongUNet: functions over a flat dict of tensors named as in the checkpoint.

PyTorch is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from flax.traverse_util import flatten_dict

from cm_jax.errors import UserError

if TYPE_CHECKING:
  import torch

Tensors: TypeAlias = "Mapping[str, torch.Tensor]"
NORM_EPS = 1e-6
SAME = {
  "name": "songunet", "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard",
  "channel_mult_noise": 1, "label_dim": 0, "augment_dim": 0, "second_time": False,
  "guidance_embedding": False, "modulation": "shift", "dropout": 0.0,
}  # fmt: skip


class Net:
  """DDPM++ as functions of its weights.

  Args:
    network: Fields of our SongUNet.
    side: Of the images, in pixels.

  Raises:
    UserError: Another network than DDPM++ without dropout, labels and second time.
  """

  def __init__(self, network: Mapping[str, Any], side: int):
    for field, value in SAME.items():
      if field in network and network[field] != value:
        raise UserError(f"network.{field}", network[field], f"{value!r} for --beside=torch (DDPM++)")
    if tuple(network.get("resample_filter", (1, 1))) != (1, 1):
      raise UserError("network.resample_filter", network["resample_filter"], "(1, 1) for --beside=torch")
    self.side = side
    self.width = network.get("model_channels", 128)
    self.mult = tuple(network.get("channel_mult", (1, 2, 2, 2)))
    self.blocks = network.get("num_blocks", 4)
    self.attention = tuple(network.get("attn_resolutions", (16,)))

  def __call__(self, weights: Tensors, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    """Evaluate F(x [B,C,H,W], c_noise [B])."""
    import torch
    import torch.nn.functional as F

    half = self.width // 2
    freqs = (1 / 10000) ** (torch.arange(half, dtype=torch.float32) / max(half - 1, 1))
    phase = c_noise[:, None] * freqs[None]
    emb = torch.cat([phase.sin(), phase.cos()], 1)
    for name in ("map_layer0", "map_layer1"):
      emb = F.silu(F.linear(emb, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    x = F.conv2d(x, *_pair(weights, f"enc.{self.side}x{self.side}_conv"), padding=1)
    skips = [x]
    for level in range(len(self.mult)):
      size = self.side >> level
      if level:
        x = _block(weights, f"enc.{size}x{size}_down", x, emb, down=True)
        skips.append(x)
      for i in range(self.blocks):
        x = _block(weights, f"enc.{size}x{size}_block{i}", x, emb, heads=size in self.attention)
        skips.append(x)
    for level in reversed(range(len(self.mult))):
      size = self.side >> level
      if level == len(self.mult) - 1:
        x = _block(weights, f"dec.{size}x{size}_in0", x, emb, heads=True)
        x = _block(weights, f"dec.{size}x{size}_in1", x, emb)
      else:
        x = _block(weights, f"dec.{size}x{size}_up", x, emb, up=True)
      for i in range(self.blocks + 1):
        heads = i == self.blocks and size in self.attention
        x = _block(weights, f"dec.{size}x{size}_block{i}", torch.cat([x, skips.pop()], 1), emb, heads=heads)
    end = f"dec.{self.side}x{self.side}_aux"
    x = F.silu(_norm(weights, f"{end}_norm", x))
    return F.conv2d(x, *_pair(weights, f"{end}_conv"), padding=1)


def _pair(weights: Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor]:
  return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _norm(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
  import torch.nn.functional as F

  return F.group_norm(x, max(1, min(32, x.shape[1] // 4)), *_pair(weights, name), eps=NORM_EPS)


def _resample(x: torch.Tensor, up: bool, down: bool) -> torch.Tensor:
  import torch.nn.functional as F

  if up:
    return F.interpolate(x, scale_factor=2, mode="nearest")
  return F.avg_pool2d(x, 2) if down else x


def _block(
  weights: Tensors,
  name: str,
  x: torch.Tensor,
  emb: torch.Tensor,
  up: bool = False,
  down: bool = False,
  heads: bool = False,
) -> torch.Tensor:
  import torch
  import torch.nn.functional as F

  h = _resample(F.silu(_norm(weights, f"{name}.norm0", x)), up, down)
  h = F.conv2d(h, *_pair(weights, f"{name}.conv0"), padding=1)
  h = h + F.linear(emb, *_pair(weights, f"{name}.affine"))[:, :, None, None]
  h = F.conv2d(F.silu(_norm(weights, f"{name}.norm1", h)), *_pair(weights, f"{name}.conv1"), padding=1)
  if f"{name}.skip.weight" in weights:
    x = F.conv2d(_resample(x, up, down), *_pair(weights, f"{name}.skip"))
  x = (h + x) * math.sqrt(0.5)
  if not heads:
    return x
  b, c, height, width = x.shape
  qkv = F.conv2d(_norm(weights, f"{name}.norm2", x), *_pair(weights, f"{name}.qkv"))
  q, k, v = qkv.reshape(b, 1, c, 3, height * width).permute(3, 0, 1, 4, 2)
  h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, height, width)
  h = h.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else h
  return (F.conv2d(h, *_pair(weights, f"{name}.proj")) + x) * math.sqrt(0.5)


def _is_channels_last(x: torch.Tensor) -> bool:
  import torch

  return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def weights_of(params: Any, memory_format: str) -> dict[str, torch.Tensor]:
  """Return our params as PyTorch has them: OIHW, [out, in]."""
  import torch

  found = {}
  for path, leaf in flatten_dict(params["net"]).items():
    array = np.asarray(leaf)
    if array.ndim == 4:
      tensor = torch.tensor(array.transpose(3, 2, 0, 1).copy()).contiguous(
        memory_format=getattr(torch, memory_format)
      )
    else:
      tensor = torch.tensor((array.T if array.ndim == 2 else array).copy())
    found[".".join(path)] = tensor
  return found
