"""Latents of an autoencoder, encoded beforehand: a folder of arrays, mapped into memory, never read whole."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from cm_jax.data.sources.classes import class_numbers, count_classes
from cm_jax.data.sources.files import check_path, file_stamp
from cm_jax.data.sources.fingerprints import fingerprint, remembered
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError
from cm_jax.storage import bounded, whole

FILES = ("label.npy", "mean.npy", "stats.json", "std.npy")


@dataclasses.dataclass(frozen=True)
class LatentSource:
  """A folder with `mean.npy` [N, H, W, C]; perhaps `std.npy` of that shape, `label.npy` [N], `stats.json`.

  A latent is drawn anew every time, mean + std z with z standard normal (on the device, inside the step),
  then (x - shift) * scale with the `{"shift": [C], "scale": [C]}` of stats.json, which bring it to a mean of
  0 and a deviation of sigma_data. Without std.npy it is the mean; without stats.json it is taken as it is.

  Args:
    path: The folder.

  Raises:
    UserError: A file is missing, no array of floats, or does not fit the others.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    _ = self._arrays, self.labels, self._stats

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the folder exists."""
    check_path("latents", path, folder=True)

  def _load(self, name: str) -> np.ndarray | None:
    path = Path(self.path) / name
    if not os.path.lexists(path):
      return None
    try:
      whole.check_regular(path)
      return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a header that is no Python literal: whatever Python's own parsers raise
      raise UserError(str(path), f"unreadable: {error}", "an array as numpy.save writes it") from error

  @functools.cached_property
  def _arrays(self) -> dict[str, np.ndarray]:
    mean, std = self._load("mean.npy"), self._load("std.npy")
    if mean is None:
      raise UserError("source", f"latents:{self.path}", "a folder that holds mean.npy [N, H, W, C]")
    found = {"image": mean} | ({} if std is None else {"std": std})
    for name, array in zip(("mean.npy", "std.npy"), found.values(), strict=False):
      if array.dtype.kind != "f" or array.ndim != 4 or array.shape != mean.shape or not array.size:
        wanted = f"floats {list(mean.shape) if mean.ndim == 4 else '[N, H, W, C]'}"
        raise UserError(os.path.join(self.path, name), f"{array.dtype} {list(array.shape)}", wanted)
    if std is not None:
      self._check_deviations(std)
    return found

  def _check_deviations(self, std: np.ndarray) -> None:
    """Check that all deviations are some, once for the file as it is."""
    file = Path(self.path) / "std.npy"
    bad = lambda: next((str(row.min()) for row in std if not (np.isfinite(row).all() and row.min() >= 0)), "")
    found = remembered(["deviations\n", file_stamp(file)], bad)
    if found:
      raise UserError(str(file), found, "finite deviations, 0 or more")

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 [N], -1 if unlabelled."""
    where = os.path.join(self.path, "label.npy")
    return class_numbers(self._load("label.npy"), len(self._arrays["image"]), where, "", "latent")

  @functools.cached_property
  def _stats(self) -> tuple[np.ndarray, np.ndarray]:
    path, channels = Path(self.path) / "stats.json", self._arrays["image"].shape[-1]
    if not os.path.lexists(path):
      return np.zeros(channels, np.float32), np.ones(channels, np.float32)
    expected = f'{{"shift": [...], "scale": [...]}} of {channels} finite numbers each, scale > 0'
    stored = bounded.read_object(path, expected)
    try:
      shift, scale = (np.array(stored[key], np.float32) for key in ("shift", "scale"))
    except (OSError, ValueError, TypeError, KeyError) as error:
      raise UserError(str(path), f"{type(error).__name__}: {error}", expected) from error
    are_vectors = shift.shape == scale.shape == (channels,)
    if not are_vectors or not np.isfinite([shift, scale]).all() or not (scale > 0).all():
      raise UserError(str(path), f"shift {shift.tolist()}, scale {scale.tolist()}", expected)
    return shift, scale

  @property
  def num_classes(self) -> int:
    """0 if unlabelled."""
    return count_classes(self.labels)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sha256 over the arrays, the labels and the statistics; remembered by the files' sizes and times."""
    shift, scale = self._stats
    kinds = {key: (str(array.dtype), array.shape[1:]) for key, array in self._arrays.items()}
    about = f"{kinds} {shift.tolist()} {scale.tolist()}"
    blob = lambda index: b"".join(array[index].tobytes() for array in self._arrays.values())
    compute = lambda: fingerprint(about, in_order(blob, range(len(self)), "fingerprint"), self.labels)
    files = sorted(path for path in Path(self.path).iterdir() if path.is_file())
    return remembered(map(file_stamp, files), compute)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Return {"image": its mean, "std" if it has one: float32 [H, W, C], both normalised; "label"}."""
    shift, scale = self._stats
    image = {"image": (self._arrays["image"][index].astype(np.float32) - shift) * scale}
    std = {"std": self._arrays["std"][index].astype(np.float32) * scale} if "std" in self._arrays else {}
    return {**image, **std, "label": int(self.labels[index])}
