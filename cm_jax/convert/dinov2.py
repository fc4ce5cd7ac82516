"""DINOv2's published weights, facebookresearch's or those of `transformers`, into one file of ours.

The hashes are those that public repositories pin these files by; they were not fetched here.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cm_jax.convert.failures import reading
from cm_jax.convert.openai import read_state_dict
from cm_jax.networks import dinov2
from cm_jax.storage import downloads, weights

LICENCE = "Apache-2.0 (facebookresearch/dinov2)"
_FILES = "https://dl.fbaipublicfiles.com/dinov2/"
PUBLISHED = {
  "dinov2-b": (
    f"{_FILES}dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
  ),
  "dinov2-l": (
    f"{_FILES}dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
  ),
}
_UNUSED = "mask_token"  # of the training by masked patches
# what `transformers` calls them, and what their authors do; the three of attention are one there
_NAMES = (
  (r"embeddings\.cls_token", "cls_token"),
  (r"embeddings\.position_embeddings", "pos_embed"),
  (r"embeddings\.mask_token", _UNUSED),
  (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
  (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
  (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
  (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
  (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
  (r"layernorm\.(weight|bias)", r"norm.\1"),
)


def fetch(which: str) -> Path:
  """Download the weights of a key of `PUBLISHED` (346 MB, 1.2 GB), once.

  Raises:
    UserError: It could not be fetched; says where to put the file by hand, and its hash.
  """
  return downloads.download(*PUBLISHED[which])


def convert_dinov2(which: str, path: str | Path, out: str | Path) -> dict[str, str]:
  """Write `out`, a safetensors file, from a published file.

  Returns:
    What the file says of itself: its source, the sha256 of that, who published it, the licence.

  Raises:
    UserError: A file that is not what it should be; nothing is written.
  """
  arrays, digest = read(which, path), downloads.file_sha256(path)
  whose = "facebookresearch" if digest == PUBLISHED[which][1] else "unknown"
  about = {"source": Path(path).name, "source_sha256": digest, "published_by": whose, "licence": LICENCE}
  weights.save_arrays(out, arrays, about)
  return about


def read(which: str, path: str | Path) -> dict[str, np.ndarray]:
  """Return the arrays of a published file, or of one of ours, in our layout and checked.

  Args:
    which: A key of `networks.dinov2.SIZES`.
    path: A state dict of torch.save, or a safetensors file of `transformers` or ours.

  Raises:
    UserError: The file cannot be read, is refused, or is of another network.
  """
  with reading(path, "file of DINOv2's weights"):
    arrays = _arrays(Path(path))
  dinov2.check(arrays, dinov2.SIZES[which], str(path))
  return arrays


def _arrays(path: Path) -> dict[str, np.ndarray]:
  is_safe = path.suffix == ".safetensors"
  stored = weights.load_arrays(path, "input") if is_safe else read_state_dict(path)
  if is_safe and "cls_token" in stored and stored["cls_token"].ndim == 1:  # ours
    return stored
  return stored_layout(by_our_names(stored))


def by_our_names(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return a set of arrays by the names of facebookresearch, in PyTorch's layout.

  >>> list(by_our_names({"dinov2.encoder.layer.3.layer_scale1.lambda1": np.zeros(2)}))
  ['blocks.3.ls1.gamma']
  """
  named = {_ours(name): array for name, array in theirs.items()}
  found = {name: array for name, array in named.items() if not re.search(r"attn\.(query|key|value)\.", name)}
  for name in named:
    if match := re.fullmatch(r"(.*attn)\.query\.(weight|bias)", name):
      parts = [named.get(f"{match[1]}.{part}.{match[2]}") for part in ("query", "key", "value")]
      have = [part for part in parts if part is not None]
      found[f"{match[1]}.qkv.{match[2]}"] = np.concatenate(have)
  return found


def _ours(name: str) -> str:
  for theirs, ours in _NAMES:
    if match := re.fullmatch(rf"(?:dinov2\.)?{theirs}", name):
      return match.expand(ours)
  return name


def stored_layout(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return facebookresearch's state dict in our layout, float32, what only training needs left out.

  >>> found = stored_layout({"pos_embed": np.zeros((1, 5, 4)), "mask_token": np.zeros((1, 4))})
  >>> {name: array.shape for name, array in found.items()}
  {'pos_embed': (5, 4)}
  """
  found = {}
  for name, array in theirs.items():
    if name == _UNUSED:
      continue
    wide = np.asarray(array, np.float32)
    if name in ("cls_token", "pos_embed"):
      wide = wide.reshape(wide.shape[-2:] if name == "pos_embed" else wide.shape[-1:])
    elif wide.ndim in (2, 4):
      wide = wide.T if wide.ndim == 2 else wide.transpose(2, 3, 1, 0)
    found[name] = np.ascontiguousarray(wide)
  return found
