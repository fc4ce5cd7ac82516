"""A folder of image files, with or without class folders."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable

from cm_jax.data.sources.classes import Classes, described_classes, folder_classes, unlabelled
from cm_jax.data.sources.encoded import EncodedImages
from cm_jax.data.sources.files import check_path, file_stamp, read_file
from cm_jax.data.sources.names import DESCRIPTION, EXTENSIONS, is_image, is_litter, left_out
from cm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FolderSource(EncodedImages):
  """Images of one size below a folder, in the order of their names.

  Labels, the first that applies: EDM's `dataset.json` in the folder; the folder an image lies in, classes
  numbered by name; none (-1).

  Args:
    path: The folder. Hidden files are passed over; other kinds of files are counted in `notes`.

  Raises:
    UserError: No such folder, no images, a folder that links lead to twice, images beside class folders or
      deeper than them, a `dataset.json` that does not match.
  """

  path: str

  def __post_init__(self):
    self.check(self.path)
    _ = self.classes  # lists the files too: what is wrong with them is said here, not at the first batch

  @staticmethod
  def check(path: str) -> None:
    """Raise UserError unless the folder exists."""
    check_path("folder", path, folder=True)

  @functools.cached_property
  def _files(self) -> tuple[list[str], list[str]]:
    """Paths of all files and folders relative to the folder, with forward slashes."""
    found: list[str] = []
    inside: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    for folder, subfolders, files in os.walk(self.path, followlinks=True):
      status = os.stat(folder)
      first = seen.setdefault((status.st_dev, status.st_ino), folder) if status.st_ino else folder
      if first != folder:  # links can lead back here for ever
        raise UserError(folder, f"the folder {first} again", "links to other folders, each once")
      subfolders[:] = sorted(name for name in subfolders if not is_litter(name))
      below = os.path.relpath(folder, self.path).replace(os.sep, "/")
      prefix = "" if below == "." else below + "/"
      inside += [prefix + name for name in subfolders]
      found += [prefix + name for name in files if not is_litter(name)]
    return found, inside

  @functools.cached_property
  def names(self) -> list[str]:
    """The images' paths relative to the folder, with forward slashes, sorted."""
    found = sorted(filter(is_image, self._files[0]))
    if not found:
      told = "".join(f"; {note}" for note in self.notes)
      expected = f"a folder that holds images ({', '.join(EXTENSIONS)}){told}"
      raise UserError("source", f"folder:{self.path}", expected)
    return found

  @functools.cached_property
  def classes(self) -> Classes:
    """The labels, and the classes' names."""
    described = os.path.join(self.path, DESCRIPTION)
    if os.path.lexists(described):  # of a pipe, or a link to nothing, the labels are not left out
      return described_classes(read_file(described), self.names, described)
    depths = {name.count("/"): name for name in reversed(self.names)}
    if set(depths) == {0}:
      return unlabelled(len(self.names))
    if set(depths) != {1}:
      odd = depths[0] if 0 in depths else depths[max(depths)]
      given = f"in none of the class folders of {self.path}"
      raise UserError(os.path.join(self.path, odd), given, "FOLDER/CLASS/IMAGE or FOLDER/IMAGE, not both")
    return folder_classes(self.names)

  @property
  def notes(self) -> list[str]:
    """What was left out, and class folders without an image."""
    files, folders = self._files
    full = {name.split("/")[0] for name in filter(is_image, files)}
    empty = [name for name in folders if "/" not in name and name not in full]
    told = [f"no image in the folder{'s' * (len(empty) > 1)} {', '.join(empty)}"] if empty else []
    return left_out(files) + told

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the file's bytes, its label)."""
    return read_file(self.where(index)), int(self.labels[index])

  def where(self, index: int) -> str:
    """Return the file's path."""
    return os.path.join(self.path, self.names[index])

  def stamp(self) -> Iterable[str]:
    """Yield path, size and time of every file, and the labels."""
    yield from map(file_stamp, map(self.where, range(len(self))))
    yield hashlib.sha256(self.labels.tobytes()).hexdigest()
