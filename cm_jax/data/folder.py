"""A folder of PNG and JPEG files, with or without class folders."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from cm_jax.data.sources import EXTENSIONS, UNLABELLED, check_path, check_shape, count_classes, decode, edm_labels, fingerprint
from cm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Images of one size below a folder, in the order of their names.

  Labels, the first that applies: EDM's `dataset.json` in the folder; the folder an image lies in, classes numbered by name; none (-1).

  Args:
    path: The folder. Hidden files and other kinds of files are passed over.

  Raises:
    UserError: No such folder, no images, images beside class folders or deeper than them, a `dataset.json` that does not match.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    _ = self.labels  # lists the files too: what is wrong with them is said here, not at the first batch

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the folder exists."""
    check_path("folder", path, folder=True)

  @functools.cached_property
  def names(self) -> list[str]:
    """The images' paths relative to the folder, with forward slashes, sorted."""
    found = []
    for folder, subfolders, files in os.walk(self.path, followlinks=True):
      subfolders[:] = [name for name in subfolders if not name.startswith(".")]
      below = os.path.relpath(folder, self.path).replace(os.sep, "/")
      prefix = "" if below == "." else below + "/"
      found += [prefix + name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
    if not found:
      raise UserError("config.data.source", f"folder:{self.path}", f"a folder that holds images ({', '.join(EXTENSIONS)})")
    return sorted(found)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int32 [N], -1 if unlabelled."""
    described = os.path.join(self.path, "dataset.json")
    if os.path.isfile(described):
      with open(described, "rb") as file:
        return edm_labels(file.read(), self.names, described)
    depths = {name.count("/"): name for name in reversed(self.names)}
    if set(depths) == {0}:
      return np.full(len(self.names), UNLABELLED, np.int32)
    if set(depths) != {1}:
      odd = depths[0] if 0 in depths else depths[max(depths)]
      raise UserError(
        os.path.join(self.path, odd), f"in none of the class folders of {self.path}", "FOLDER/CLASS/IMAGE or FOLDER/IMAGE, not both"
      )
    classes = [name.split("/")[0] for name in self.names]
    return np.unique(classes, return_inverse=True)[1].astype(np.int32)

  @property
  def num_classes(self) -> int:
    """0 if unlabelled."""
    return count_classes(self.labels)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sha256 over the files' bytes and labels; neither names nor place of the folder matter beyond the order they give."""
    return fingerprint("uint8", map(self._read, self.names), self.labels)

  def _read(self, name: str) -> bytes:
    try:
      with open(os.path.join(self.path, name), "rb") as file:
        return file.read()
    except OSError as error:
      raise UserError(os.path.join(self.path, name), f"unreadable: {error.strerror}", "a file that can be read") from error

  def _decode(self, name: str) -> np.ndarray:
    return decode(self._read(name), os.path.join(self.path, name))

  @functools.cached_property
  def _shape(self) -> tuple[int, ...]:
    return self._decode(self.names[0]).shape

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self.names[index]
    image = self._decode(name)
    check_shape(os.path.join(self.path, name), image.shape, self.names[0], self._shape)
    return {"image": image, "label": int(self.labels[index])}
