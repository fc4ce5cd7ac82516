"""LPIPS' published weights, torchvision's VGG16 and the heads of Zhang et al., into one file of ours."""

from pathlib import Path

import numpy as np

from cm_jax.convert.failures import reading
from cm_jax.convert.openai import read_state_dict
from cm_jax.errors import UserError
from cm_jax.networks import lpips
from cm_jax.storage import downloads

_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
PUBLISHED = {
  "vgg16": (
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
  ),
  "heads": (
    f"{_LPIPS}082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
  ),
}
LICENCES = "VGG16: BSD-3-Clause (torchvision), ImageNet-trained; LPIPS heads: BSD-2-Clause (Zhang et al.)"


def convert_lpips(vgg16: str | Path, heads: str | Path, out: str | Path) -> dict[str, str]:
  """Write `out` from the two published files.

  Args:
    vgg16: torchvision's state dict ("features.0.weight", ...; its classifier is left out).
    heads: The `lpips` package's weights/v0.1/vgg.pth ("lin0.model.1.weight" [1,C,1,1], ...).
    out: The safetensors file.

  Returns:
    What the file says of itself: the sha256 of both sources, the licences.

  Raises:
    UserError: A file that is not what it should be; nothing is written.
  """
  files = {"input": vgg16, "heads": heads}
  stored = {field: _read(field, path) for field, path in files.items()}
  arrays = {}
  for name in lpips.shapes():
    is_head = name.startswith("lin")
    field, theirs = ("heads", f"{name}.model.1.weight") if is_head else ("input", name)
    if theirs not in stored[field]:
      raise UserError(field, str(files[field]), f"a state dict with {theirs}")
    array = np.asarray(stored[field][theirs], np.float32)
    arrays[name] = array.reshape(-1) if is_head else array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
  about = {
    "vgg16_sha256": downloads.file_sha256(vgg16),
    "heads_sha256": downloads.file_sha256(heads),
    "licence": LICENCES,
  }
  lpips.save(out, arrays, about)
  return about


def _read(field: str, path: str | Path) -> dict[str, np.ndarray]:
  with reading(path, "state dict", field):
    return read_state_dict(Path(path))


def fetch(which: str) -> Path:
  """Download "vgg16" (528 MB, torchvision's ImageNet weights) or "heads" (LPIPS 0.1), once.

  Raises:
    UserError: It could not be fetched; says where to put the file by hand.
  """
  return downloads.download(*PUBLISHED[which])
