"""The digits that ship with scikit-learn: 1,797 real 8x8 grey images of 10 classes, no download."""

import dataclasses
import functools
from typing import Any

import numpy as np

from cm_jax.data.sources.fingerprints import fingerprint
from cm_jax.errors import UserError, one_of

SPLITS = ("", "train", "test")
TEST_FRACTION = 0.2
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class DigitsSource:
  """scikit-learn's digits, values 0..16 scaled to 0..255.

  Args:
    split: "" for all 1,797, "train" for the stratified 80 % (seed 0), "test" for the other 20 %.

  Raises:
    UserError: Another split.
  """

  split: str = ""
  num_classes = 10

  def __post_init__(self):
    self.check(self.split)

  @staticmethod
  def check(split: str) -> None:
    """Raise UserError unless `split` is one."""
    if split not in SPLITS:
      expected = f"digits (all) or, after 'digits:', {one_of(SPLITS[1:], split)}"
      raise UserError("source", f"digits:{split}", expected)

  @functools.cached_property
  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    if self.split:
      how = {"test_size": TEST_FRACTION, "random_state": SPLIT_SEED, "stratify": digits.target}
      train, test = train_test_split(rows, **how)
      rows = np.sort(train if self.split == "train" else test)
    pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)[..., None]
    return pixels, digits.target[rows].astype(np.int32)

  @property
  def labels(self) -> np.ndarray:
    """int32 [N]."""
    return self._arrays[1]

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sha256 over the pixels and labels."""
    pixels, labels = self._arrays
    return fingerprint(f"uint8 {pixels.shape[1:]}", pixels, labels)

  def __len__(self) -> int:
    return len(self._arrays[1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    pixels, labels = self._arrays
    return {"image": pixels[index], "label": int(labels[index])}
