"""How peers measure, by name: "FID" is one number only where quantiser, resize and counts are the same."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cm_jax.diffusion.pixels import QUANTISERS
from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.metrics.kid import KERNELS

FULL = 50_000  # samples; with fewer a distance is called FID@n
# What is measured by default in published features; in others every metric that is not `ON_REQUEST`.
USUAL: Mapping[str, Sequence[str]] = {"inception": ("fid",), "dinov2-b": ("fd",), "dinov2-l": ("fd",)}
# What records call a quantiser.
QUANTISER_WORDS: Mapping[str, str] = {
  "edm": "clip(floor(127.5 x + 128), 0, 255)",
  "adm": "floor(clip(127.5 (x + 1), 0, 255))",
}
GIVEN = "uint8 as given"


@dataclasses.dataclass(frozen=True)
class Convention:
  """What a code base does where others do something else; every field can be overridden.

  Args:
    quantiser: How samples become uint8, a key of `QUANTISERS`.
    resize: How images come to the network's size, a key of `RESIZES`; None: as its authors have it,
      TensorFlow 1's bilinear for Inception, Pillow's bicubic for DINOv2.
    num: Samples.
    about: Whose it is, the form of its references, and what else belongs to it.
    splits, shuffle: Of the Inception score: parts, and whether samples are shuffled before.
    subsets, subset_size, kernel, kernel_width: Of KID.
    neighbours: Of precision, recall, density and coverage.
    metric_seed: Of the order behind a shuffle, and of KID's subsets.

  Raises:
    UserError: A field out of range.
  """

  quantiser: str = "edm"
  resize: str | None = None
  num: int = FULL
  about: str = ""
  splits: int = 10
  shuffle: bool = False
  subsets: int = 100
  subset_size: int = 1000
  kernel: str = "polynomial"
  kernel_width: float = 10.0
  neighbours: int = 3
  metric_seed: int = 2020

  def __post_init__(self):
    if self.quantiser not in QUANTISERS:
      raise UserError("quantiser", self.quantiser, one_of(QUANTISERS, self.quantiser))
    if self.kernel not in KERNELS:
      raise UserError("kernel", self.kernel, one_of(KERNELS, self.kernel))
    if not (self.kernel_width > 0 and math.isfinite(self.kernel_width)):
      raise UserError("kernel_width", self.kernel_width, "a positive number")
    if not 0 <= self.metric_seed < 2**32:
      raise UserError("metric_seed", self.metric_seed, "0 to 2^32 - 1")
    least = {"num": 2, "splits": 1, "subsets": 1, "subset_size": 2, "neighbours": 1}
    for name, low in least.items():
      value = vars(self)[name]
      if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UserError(name, value, f"at least {low}")


# All but "own" are measured in the features of inception-2015-12-05 behind TensorFlow 1's bilinear resize
# (source pixel i W / 299, no half-pixel offset), which is what `resize` None means there.
CONVENTIONS: Mapping[str, Convention] = {
  "own": Convention(num=5000, about="features of your own: numbers compare within one reference only"),
  "edm": Convention(
    about="EDM, EDM2, ECT, TCM, CMT: mu and sigma of the unflipped training set (.npz, .pkl)"
  ),
  "adm": Convention(
    quantiser="adm", about="ADM, CM, CTM, DiT: VIRTUAL_*.npz, whose images are for P/R and IS"
  ),
  "torch-fidelity": Convention(
    shuffle=True, about="torch-fidelity, torchmetrics: both sets as uint8 images, KID of 100 subsets of 1000"
  ),
  "clean-fid-legacy": Convention(
    quantiser="adm", about="clean-fid legacy_tensorflow, as CM on CIFAR-10 (jcm): the 50,000 of train"
  ),
}


def convention(name: str, **changed: Any) -> Convention:
  """Return a convention, with the fields that are not None changed.

  Raises:
    UserError: An unknown name, or a field out of range.

  >>> convention("adm").quantiser, convention("adm", quantiser="edm", num=None).quantiser
  ('adm', 'edm')
  """
  if name not in CONVENTIONS:
    raise UserError("convention", name, one_of(CONVENTIONS, name))
  given = {field: value for field, value in changed.items() if value is not None}
  return dataclasses.replace(CONVENTIONS[name], **given)
