"""Images that are ready to be written, kept on the way: a run that was stopped goes on with those it has.

They lie in shards of some hundred, each with its sha256. An image is taken from there only if what it is made
of (its bytes in the source, its label, the crop) is what it was made of then: the source is read again, which
costs little beside decoding, cropping and encoding.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bounded, whole
from cm_jax.storage.sealed import opened, sealed

IMAGES = 256  # a shard's, at most: what a kill costs
BYTES = 1 << 24  # or so much


@dataclasses.dataclass(frozen=True)
class Image:
  """An image that is ready to be written.

  Args:
    index: Its number in the source.
    png: The file.
    label: Its class, -1 if unlabelled.
    shape: (H, W, C).
    enlarged: Whether it was smaller than the resolution before.
    made_of: Sha256 of what it was made of, hexadecimal.
  """

  index: int
  png: bytes
  label: int
  shape: tuple[int, ...]
  enlarged: bool
  made_of: str


def made_of(content: bytes | np.ndarray, label: int, how: str) -> str:
  """Return the sha256 of what an image is made of.

  >>> made_of(b"png", 3, "center 64") == made_of(b"png", 3, "center 32")
  False
  """
  header = f"{how}\0{label}\0"
  if not isinstance(content, bytes):
    header, content = f"{header}{content.dtype} {content.shape}\0", content.tobytes()
  return hashlib.sha256(header.encode() + content).hexdigest()


class Kept:
  """The shards of one split.

  Args:
    folder: Where they lie; made when the first is written.
  """

  def __init__(self, folder: Path):
    self._folder = folder
    self._known: dict[str, tuple[Path, int, int, Image]] = {}  # shard, offset, size, all but the file
    self._waiting: list[Image] = []
    self._next = 0
    for path in sorted(folder.glob("shard_*")) if folder.is_dir() else ():
      self._next = int(path.name.removeprefix("shard_")) + 1
      try:
        self._read(path)
      except (OSError, UserError, ValueError, TypeError):  # cut off or damaged: made anew
        continue

  def __len__(self) -> int:
    return len(self._known)

  def _read(self, path: Path) -> None:
    content = opened(epath.Path(path))
    header, _, images = content.partition(b"\n")
    entries = bounded.parse_json(header.decode(), str(path), "what data prepare kept")
    if sum(size for *_, size in entries) != len(images):
      raise UserError(str(path), "damaged", "what data prepare kept")
    start = hashlib.sha256().digest_size + len(header) + 1
    for index, label, shape, enlarged, digest, size in entries:
      self._known[digest] = (path, start, size, Image(index, b"", label, tuple(shape), enlarged, digest))
      start += size

  def find(self, index: int, digest: str) -> Image | None:
    """Return the image made of what has this digest, under its number in the source; None if none is kept."""
    if digest not in self._known:
      return None
    path, start, size, image = self._known[digest]
    with path.open("rb") as file:
      file.seek(start)
      return dataclasses.replace(image, index=index, png=file.read(size))

  def add(self, image: Image) -> None:
    """Keep an image, unless it is; written with others."""
    if image.made_of in self._known:
      return
    self._waiting.append(image)
    if len(self._waiting) >= IMAGES or sum(len(image.png) for image in self._waiting) >= BYTES:
      self.write()

  def write(self) -> None:
    """Write what waits to be written.

    Raises:
      UserError: The disk is full.
    """
    if not self._waiting:
      return
    entries = [
      [image.index, image.label, list(image.shape), image.enlarged, image.made_of, len(image.png)]
      for image in self._waiting
    ]
    self._folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(entries).encode() + b"\n" + b"".join(image.png for image in self._waiting)
    whole.write(epath.Path(self._folder / f"shard_{self._next:06d}"), sealed(content))
    self._next, self._waiting = self._next + 1, []
