"""CIFAR's binary archives: every byte where it belongs, hostile ones refused, downloads that go wrong."""

import dataclasses
import functools
import hashlib
import io
import tarfile
import time

import numpy as np
import pytest

from cm_jax.data.prepare import cifar
from cm_jax.errors import UserError
from cm_jax.storage import downloads
from tests.serving import served

NAMES = {
  "cifar10": {"batches.meta.txt": "airplane automobile bird cat deer dog frog horse ship truck"},
  "cifar100": {
    "coarse_label_names.txt": " ".join(f"coarse_{i}" for i in range(20)),
    "fine_label_names.txt": " ".join(f"fine_{i}" for i in range(100)),
  },
}
PER_FILE = 10


def records(name, file):
  """Return the labels [N, 1 or 2] and pixels [N, 32, 32, 3] of a made-up member."""
  rng = np.random.default_rng([ord(letter) for letter in file])
  limits = {"cifar10": [10], "cifar100": [20, 100]}[name]
  labels = np.stack([rng.integers(0, limit, PER_FILE) for limit in limits], axis=1).astype(np.uint8)
  labels[0] = np.array(limits) - 1
  return labels, rng.integers(0, 256, (PER_FILE, 32, 32, 3), dtype=np.uint8)


def member_bytes(name, file):
  labels, pixels = records(name, file)
  return np.concatenate([labels, pixels.transpose(0, 3, 1, 2).reshape(PER_FILE, -1)], axis=1).tobytes()


def write_archive(path, name="cifar10", extra=(), leave_out=(), change=None):
  """Write an archive of the real form with few images.

  Args:
    extra: (TarInfo, bytes) put first.
    leave_out: Members left out.
    change: Member -> its content instead.
  """
  archive = cifar.ARCHIVES[name]
  content = {file: "\n".join(text.split()).encode() + b"\n\n" for file, text in NAMES[name].items()}
  content |= {file: member_bytes(name, file) for files in archive.splits.values() for file in files}
  content |= change or {}
  with tarfile.open(path, "w:gz") as tar:
    folder = tarfile.TarInfo(archive.folder)
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    for info, data in extra:
      tar.addfile(info, io.BytesIO(data))
    for file, data in {**content, "readme.html": b"<html>"}.items():
      if file not in leave_out:
        info = tarfile.TarInfo(f"{archive.folder}/{file}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  return path


def pin(monkeypatch, path, name="cifar10", **fields):
  """Let an archive be the one that is expected."""
  fields = {"sha256": downloads.file_sha256(path), **fields}
  monkeypatch.setitem(cifar.ARCHIVES, name, dataclasses.replace(cifar.ARCHIVES[name], **fields))


@pytest.mark.parametrize("name", cifar.ARCHIVES)
def test_every_byte_is_where_it_belongs(tmp_path, name):
  splits, names = cifar.read_archive(name, write_archive(tmp_path / "a.tar.gz", name))
  assert names["label"] == next(reversed(NAMES[name].values())).split()
  assert set(splits) == {"train", "test"} and len(splits["train"].pixels) == PER_FILE * len(
    cifar.ARCHIVES[name].splits["train"]
  )
  for split, files in cifar.ARCHIVES[name].splits.items():
    labels, pixels = (
      np.concatenate(parts) for parts in zip(*(records(name, file) for file in files), strict=True)
    )
    np.testing.assert_array_equal(splits[split].pixels, pixels)
    np.testing.assert_array_equal(splits[split].labels["label"], labels[:, -1])
    if name == "cifar100":
      np.testing.assert_array_equal(splits[split].labels["coarse_label"], labels[:, 0])


def member(name, data=b"x", kind=tarfile.REGTYPE, link=""):
  info = tarfile.TarInfo(name)
  info.size, info.type, info.linkname = len(data), kind, link
  return info, data


FOLDER = "cifar-10-batches-bin"
HOSTILE = {
  "outside": member("../outside"),
  "absolute": member("/tmp/outside"),
  "dots": member(f"{FOLDER}/../../outside"),
  "dots in place": member(f"{FOLDER}/.."),
  "deeper": member(f"{FOLDER}/a/data_batch_1.bin"),
  "symlink": member(f"{FOLDER}/data_batch_1.bin", b"", tarfile.SYMTYPE, "/etc/passwd"),
  "hard link": member(f"{FOLDER}/data_batch_1.bin", b"", tarfile.LNKTYPE, "/etc/passwd"),
  "device": member(f"{FOLDER}/data_batch_1.bin", b"", tarfile.CHRTYPE),
  "bomb": member(f"{FOLDER}/data_batch_1.bin", bytes(200_000_000)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused(tmp_path, kind):
  info, data = HOSTILE[kind]
  path = write_archive(tmp_path / "a.tar.gz", extra=[(info, data)])
  with pytest.raises(UserError, match="nothing but plain files in|at most 153700000 bytes"):
    cifar.read_archive("cifar10", path)
  assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


def test_damaged_archives(tmp_path):
  whole = write_archive(tmp_path / "a.tar.gz").read_bytes()
  for damaged in (
    b"",
    whole[:-5000],
    whole[:40],
    b"\x1f\x8b" + whole[2:200] + bytes(2000),
    b"not a gzip file",
  ):
    (tmp_path / "b.tar.gz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"b\.tar\.gz = .*expected"):
      cifar.read_archive("cifar10", tmp_path / "b.tar.gz")
  bad = [
    ({"leave_out": ["data_batch_3.bin"]}, "no member cifar-10-batches-bin/data_batch_3.bin"),
    ({"leave_out": ["batches.meta.txt"]}, "no member"),
    (
      {"change": {"test_batch.bin": member_bytes("cifar10", "test_batch.bin")[:-1]}},
      "whole records of 3073 bytes",
    ),
    ({"change": {"test_batch.bin": b""}}, "whole records"),
    ({"change": {"test_batch.bin": b"\x0a" + member_bytes("cifar10", "test_batch.bin")[1:]}}, "label 10"),
  ]
  for options, words in bad:
    with pytest.raises(UserError, match=words):
      cifar.read_archive("cifar10", write_archive(tmp_path / "b.tar.gz", **options))


def test_only_the_pinned_content_is_read(tmp_path, monkeypatch):
  path = write_archive(tmp_path / "a.tar.gz")
  with pytest.raises(
    UserError,
    match=f"^input = .*sha256 {cifar.ARCHIVES['cifar10'].sha256}, not {downloads.file_sha256(path)}",
  ):
    cifar.find_archive("cifar10", str(path))
  with pytest.raises(UserError, match="^input = /no/such/file"):
    cifar.find_archive("cifar10", "/no/such/file")
  pin(monkeypatch, path)
  assert cifar.find_archive("cifar10", str(path)) == path


def test_digests_and_mirrors_are_what_tfds_pins():
  from tensorflow_datasets.core.download import checksums

  for name, archive in cifar.ARCHIVES.items():
    pinned = {
      url: info.checksum
      for url, info in checksums.get_all_url_infos().items()
      if url.endswith(f"/{archive.file}")
    }
    assert set(pinned.values()) == {archive.sha256}, name
    assert len(archive.mirrors) >= 2 and all(
      url.startswith("https://") and url.endswith(f"/{archive.file}") for url in archive.mirrors
    )


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
  """Serve an archive at https://host/whole, and as troubled servers do; its path and the requests."""
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  path = write_archive(tmp_path / "cifar-10-binary.tar.gz")
  content, requests = path.read_bytes(), []

  def answer(handler, start):
    requests.append((handler.path, start))
    if handler.path == "/absent":
      return handler.send_error(503)
    body = content[::-1] if handler.path == "/other" else content
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    if handler.path == "/broken":
      return handler.wfile.write(body[start : start + len(body) // 3])
    for at in range(start, len(body), len(body) // 4 + 1):
      handler.wfile.write(body[at : min(len(body), at + len(body) // 4 + 1)])
      time.sleep(0.05 if handler.path == "/slow" else 0)
    return None

  with served(answer) as opener:
    monkeypatch.setattr(downloads, "download", functools.partial(downloads.download, opener=opener))
    yield path, requests


def test_a_broken_transfer_goes_on_at_the_next_mirror(mirrors, monkeypatch):
  path, requests = mirrors
  pin(monkeypatch, path, mirrors=("https://host/absent", "https://host/broken", "https://host/slow"))
  found = cifar.find_archive("cifar10")
  assert found.read_bytes() == path.read_bytes()
  third = path.stat().st_size // 3
  assert requests[-3:] == [("/broken", 0), ("/broken", third), ("/slow", 2 * third)]
  assert cifar.find_archive("cifar10") == found and requests[-1] == ("/slow", 2 * third)


def test_a_mirror_with_other_content_is_passed_over(mirrors, monkeypatch):
  path, _ = mirrors
  pin(monkeypatch, path, mirrors=("https://host/other", "https://host/whole"))
  assert cifar.find_archive("cifar10").read_bytes() == path.read_bytes()
  pin(monkeypatch, path, mirrors=("https://host/other",), sha256=hashlib.sha256(b"another").hexdigest())
  with pytest.raises(UserError, match="or cifar-10-binary.tar.gz as input if you have it"):
    cifar.find_archive("cifar10")
