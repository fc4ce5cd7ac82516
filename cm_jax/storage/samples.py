"""Many samples on their way to a folder, an .npz (ADM's form) or a .zip (EDM's): resumable, whole or absent.

Until all samples are made they lie in a hidden folder beside the result, `.NAME.part`: raw shards, and
`request.json`, which says what they are samples of. A run that was interrupted goes on with the shards it has
not finished.
"""

import concurrent.futures
import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bounded, whole
from cm_jax.storage.pictures import encode_png, png_name
from cm_jax.storage.sealed import digest, opened, sealed

FORMATS = (".npz", ".zip")  # anything else is a folder
SHARD = 512  # images, about: what an interruption costs at most, and one file until the result is whole
SHARD_BYTES = 1 << 24  # some of them wait in memory


def shard_size(batch_size: int, image_bytes: int = 0) -> int:
  """Return the images of a shard: whole batches, fewer if an image is so many bytes.

  >>> shard_size(100), shard_size(4096), shard_size(100, 1 << 17)
  (500, 4096, 100)
  """
  images = min(SHARD, SHARD_BYTES // max(image_bytes, 1))
  return max(1, images // batch_size) * batch_size


def zip_entry(name: str) -> zipfile.ZipInfo:
  """Return what a zip says of a file, without a time: the same content gives the same bytes.

  >>> zip_entry("a.png").date_time
  (1980, 1, 1, 0, 0, 0)
  """
  entry = zipfile.ZipInfo(name)
  entry.external_attr = 0o644 << 16  # else whoever unpacks it gets files that nobody may read
  return entry


class SampleStore:
  """The place where numbered samples are collected.

  Args:
    out: x.npz, x.zip, or a folder.
    request: What the samples are of: plain JSON; a resumed run has to ask for the same.
    num: Number of samples.
    shard: Samples a shard.
    assemble: This process puts the result together, the one that calls `finish`.

  Raises:
    UserError: `out` exists. Later: an interrupted run asked for something else; the disk is full.
  """

  def __init__(
    self, out: epath.PathLike, request: Mapping[str, Any], num: int, shard: int, assemble: bool = True
  ):
    self._out, self._num, self._shard = whole.absolute(out), num, shard
    self._part = self._out.parent / f".{self._out.name}.part"
    # Where the result takes shape elsewhere: a zip needs a local file, and the pictures of a folder, which
    # cannot be renamed there, are put in their place at once.
    self._scratch = None if whole.is_local(self._out) else tempfile.TemporaryDirectory(prefix="cm_jax-")
    if self._out.exists() and not self._is_ours():
      raise UserError("out", str(out), "a path that does not exist yet, or an empty folder")
    self._request = json.loads(json.dumps({**request, "num": num, "shard": shard}))
    self._encoder = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: list[concurrent.futures.Future] = []
    self._assemble, self._next = assemble, 0
    self._archive: zipfile.ZipFile | None = None

  def _is_ours(self) -> bool:
    """Whether what is at `out` may be filled: an empty folder, or elsewhere the pictures of a run cut off."""
    if self._out.suffix in FORMATS or not self._out.is_dir():
      return False
    interrupted = self._scratch is not None and self._part_request.exists()
    return interrupted or not any(self._out.iterdir())

  @property
  def _part_request(self) -> epath.Path:
    return self._part / "request.json"

  def begin(self) -> None:
    """Make the hidden folder, or find it as an interrupted run left it.

    Raises:
      UserError: The interrupted run was of something else; names the first field that differs.
    """
    if self._part_request.exists():
      rule = f"the request of an interrupted run (delete {self._part} to start over)"
      stored = bounded.read_object(self._part_request, rule)
      for field in sorted(stored.keys() | self._request.keys()):
        if stored.get(field) != self._request.get(field):
          rule = f"as the interrupted run in {self._part} (delete it to start over)"
          raise UserError(field, self._request.get(field), f"{stored.get(field)!r}, {rule}")
      return
    with self._told():
      whole.write(self._part_request, json.dumps(self._request, indent=2, sort_keys=True))

  def _told(self) -> contextlib.AbstractContextManager[None]:
    return whole.told_as(str(self._out), self._part)

  def missing(self) -> list[range]:
    """Return the numbers of the samples of every shard that is not there yet, or is not as it was written."""
    starts = (start for start in range(0, self._num, self._shard) if not self._is_whole(start))
    return [self._numbers(start) for start in starts]

  def _numbers(self, start: int) -> range:
    return range(start, min(start + self._shard, self._num))

  def _is_whole(self, start: int) -> bool:
    """Whether a shard is there, as it was written."""
    try:
      content = opened(self._path(start))
      if self._out.suffix not in FORMATS:
        names = self._names(start, len(self._numbers(start)))
        return content == digest(whole.read(self._pictures / name) for name in names)
    except (OSError, UserError):
      return False
    return True

  def _path(self, start: int) -> epath.Path:
    return self._part / f"shard_{start:09d}"

  def collect(
    self,
    draw: Callable[[range], Iterable[np.ndarray]],
    shards: Iterable[range],
    progress: Callable[[int], object] = lambda count: None,
  ) -> None:
    """Draw shards and write them, each while the next is drawn; the last is on the disk at the end.

    Args:
      draw: Numbers of samples -> batches of them.
      shards: From `missing`.
      progress: Called with the number of samples of each batch.

    Raises:
      UserError: The disk is full; the shards that were written stay, and a next run goes on with them.
    """
    try:
      for indices in shards:
        parts = []
        for batch in draw(indices):
          parts.append(batch)
          progress(len(batch))
        self.put(indices.start, np.concatenate(parts))
      self.wait()
    except BaseException:  # what waits to be written is not: the next run may be there already
      self._encoder.shutdown(cancel_futures=True)
      raise

  def put(self, start: int, images: np.ndarray) -> None:
    """Write a shard [n,H,W,C], uint8 or latents, in the background: the next one can be drawn meanwhile."""
    while len(self._pending) > 2:
      self._pending.pop(0).result()
    self._pending.append(self._encoder.submit(self._write_shard, start, images))

  def _write_shard(self, start: int, images: np.ndarray) -> None:
    with self._told():
      self._write(start, images)

  def _write(self, start: int, images: np.ndarray) -> None:
    if self._out.suffix == ".npz":
      content = io.BytesIO()
      np.save(content, images)
      whole.write(self._path(start), sealed(content.getvalue()))
      return
    # Encoding is what takes time: it is done here, beside the device's work.
    pngs = [encode_png(image) for image in images]
    if self._out.suffix == ".zip":
      whole.write(self._path(start), sealed(_packed(pngs)))
      if self._assemble:
        self._append()
      return
    for name in {name.split("/")[0] for name in self._names(start, len(pngs)) if not self._scratch}:
      (self._pictures / name).mkdir(parents=True, exist_ok=True)
    for name, png in zip(self._names(start, len(pngs)), pngs, strict=True):
      picture = self._pictures / name
      if whole.is_local(picture):  # a link that is there leads elsewhere, and a pipe waits
        picture.unlink(missing_ok=True)
        picture.write_bytes(png)
      else:
        whole.write(picture, png)
    whole.write(self._path(start), sealed(digest(pngs)))  # without this they are written again

  def _append(self) -> None:
    """Put the shards that are there into the zip, up to the first gap: at the end little is left to do."""
    if self._archive is None:
      self._archive = zipfile.ZipFile(self._zip, "w", zipfile.ZIP_STORED)
    while self._next < self._num and self._path(self._next).exists():
      pngs = _unpacked(opened(self._path(self._next)))
      for name, png in zip(self._names(self._next, len(pngs)), pngs, strict=True):
        self._archive.writestr(zip_entry(name), png)
      self._next += self._shard

  @property
  def _zip(self) -> Path:
    return Path(self._scratch.name if self._scratch else self._part) / "done.zip"

  @property
  def _pictures(self) -> epath.Path:
    return self._out if self._scratch else self._part / "done"

  @staticmethod
  def _names(start: int, count: int) -> list[str]:
    return list(map(png_name, range(start, start + count)))

  def wait(self) -> None:
    """Wait until every shard handed over is on the disk."""
    for pending in self._pending:
      pending.result()
    self._pending = []

  def finish(self, labels: np.ndarray | None, class_names: Sequence[str] = ()) -> None:
    """Assemble the result; it appears whole, and the hidden folder goes.

    Args:
      labels: int32 [num], or None.
      class_names: In the order of the classes' numbers, where they have names.

    Raises:
      UserError: The disk is full; the shards stay, and a next run goes on with them.
    """
    self.wait()
    self._encoder.shutdown()
    with self._told():
      if self._out.suffix == ".npz":
        self._finish_npz(labels)
      elif self._out.suffix == ".zip":
        self._finish_zip(self._described(labels, class_names))
      else:
        self._finish_folder(self._described(labels, class_names))
      self._part.rmtree()
    if self._scratch:
      self._scratch.cleanup()

  def _finish_npz(self, labels: np.ndarray | None) -> None:
    """As numpy.savez, with one shard in memory at a time."""
    read = lambda start: np.load(io.BytesIO(opened(self._path(start))), allow_pickle=False)
    first = read(0)
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (self._num, *first.shape[1:])}
    with whole.writing(self._out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
      with archive.open("arr_0.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for start in range(0, self._num, self._shard):
          member.write(np.ascontiguousarray(read(start)).data)
      if labels is not None:
        with archive.open("arr_1.npy", "w") as member:
          np.lib.format.write_array(member, labels, allow_pickle=False)

  def _finish_zip(self, described: str) -> None:
    self._append()
    assert self._archive is not None and self._next >= self._num
    self._archive.writestr(zip_entry("dataset.json"), described)
    self._archive.close()
    whole.publish(self._zip, self._out)

  def _finish_folder(self, described: str) -> None:
    # The last file: with it a folder elsewhere counts as complete.
    whole.write(self._pictures / "dataset.json", described)
    if not self._scratch:
      whole.publish(Path(self._pictures), self._out)

  def _described(self, labels: np.ndarray | None, class_names: Sequence[str]) -> str:
    if labels is None:
      return json.dumps({"labels": None})
    pairs = zip(self._names(0, self._num), labels, strict=True)
    named = {"class_names": list(class_names)} if class_names else {}
    return json.dumps({"labels": [[name, int(label)] for name, label in pairs], **named})


def _packed(pngs: list[bytes]) -> bytes:
  content = io.BytesIO()
  np.savez(content, bytes=np.frombuffer(b"".join(pngs), np.uint8), sizes=np.array([len(png) for png in pngs]))
  return content.getvalue()


def _unpacked(packed: bytes) -> list[bytes]:
  with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
    data, ends = stored["bytes"].tobytes(), np.cumsum(stored["sizes"])
  return [data[end - size : end] for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]
