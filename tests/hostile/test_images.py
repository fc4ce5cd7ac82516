"""Folders, zips and npz files of images from anybody: bounded memory, one line, no waiting, no escapes."""

import io
import json
import os
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from cm_jax.data.sources import decoding, entries, images, open_source
from cm_jax.data.sources.classes import MAX_CLASSES
from cm_jax.data.sources.decoding import MAX_PIXELS, Reading, decode
from cm_jax.errors import UserError
from cm_jax.storage import bounded
from tests.data.test_sources import PIXELS, png, write_folder


def npy(header: str, body: bytes = b"") -> bytes:
  text = header.encode() + b"\n"
  return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + body


def described(*shape: int, descr: str = "|u1") -> str:
  return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"


GOOD = npy(described(3, 8, 8, 3), bytes(576))
NPZ = {
  "braces": {"arr_0.npy": npy("{" * 9500)},
  "an open text": {"arr_0.npy": npy(described(1, 8, 8, 1) + '"""')},
  "a long header": {"arr_0.npy": npy("[" + "1," * 30_000 + "]")},
  "raw pixels": {"arr_0": b"\x89PNG"},
  "raw labels": {"arr_0.npy": GOOD, "label": b"0 1 2"},
  "exabytes": {"arr_0.npy": npy(described(2**30, 2**20, 2**10, 3), bytes(9))},
  "a shape below zero": {"arr_0.npy": npy(described(-3, -8, 8, 3), bytes(576))},
  "less than it says": {"arr_0.npy": npy(described(4, 8, 8, 3), bytes(576))},
  "objects": {"arr_0.npy": npy(described(4, 8, 8, 3, descr="|O"), bytes(6144))},
  "zeros": {"arr_0.npy": npy(described(2000, 64, 64, 1), bytes(2000 * 4096))},
  "no archive": None,
}


@pytest.mark.parametrize("name", NPZ)
def test_damaged_npz(tmp_path, monkeypatch, name):
  monkeypatch.setattr(entries, "MAX_FILE", 1 << 20)
  file = tmp_path / "a.npz"
  if NPZ[name] is None:
    file.write_bytes(npy(described(2**40), b"1"))
  else:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
      for entry, data in NPZ[name].items():
        archive.writestr(entry, data)
  tracemalloc.start()
  with pytest.raises(UserError, match="unreadable"):
    open_source(f"npz:{file}")
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 8 << 20


def test_npz_entries_of_one_name(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, pytest.warns(UserWarning):
    archive.writestr("arr_0.npy", GOOD)
    archive.writestr("arr_0.npy", GOOD)
  with pytest.raises(UserError, match="two entries of one name"):
    open_source(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_is_read_as_numpy_reads_it(tmp_path, order):
  np.savez_compressed(
    tmp_path / "a.npz", np.asarray(PIXELS[3], order=order), np.arange(len(PIXELS[3]), dtype=">i2")
  )
  source = open_source(f"npz:{tmp_path / 'a.npz'}")
  np.testing.assert_array_equal(images(source), PIXELS[3])
  assert source[2]["label"] == 2


def chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def empty_png(width: int, height: int) -> bytes:
  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
  )


def webp(kind: bytes, body: bytes) -> bytes:
  return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


SIDES = struct.pack("<HH", 50_000, 50_000)
HUGE = {
  "PNG over Pillow's limit": empty_png(70_000, 70_000),
  "PNG under it": empty_png(12_000, 11_000),
  "PNG that is a line": empty_png(1, 1 << 27),
  "WebP": webp(b"VP8X", bytes(4) + b"\xff\x3f\0\xff\x3f\0"),
  "lossless WebP": webp(b"VP8L", b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14)),
  "lossy WebP": webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)),
  "GIF": b"GIF89a" + SIDES + b"\0\0\0,\0\0\0\0" + SIDES + b"\0\x02\0;",
  "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_an_image_that_says_it_is_huge(name, recwarn):
  decoding._pillow.cache_clear()  # it silences Pillow once, and recwarn has undone that
  with pytest.raises(UserError, match="pixels"):
    decode(HUGE[name], "a.png")
  assert not recwarn.list


def test_an_image_over_white_takes_a_few_bytes_a_pixel():
  content = io.BytesIO()
  Image.new("RGBA", (1500, 1500), (10, 20, 30, 40)).save(content, "PNG", compress_level=1)
  tracemalloc.start()
  pixels = decode(content.getvalue(), "a.png", Reading(alpha="white"))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 24 * pixels.shape[0] * pixels.shape[1] + (180 << 20) < 60 * MAX_PIXELS
  assert pixels[0, 0].tolist() == [(v * 40 + 255 * 215 + 127) // 255 for v in (10, 20, 30)]


def fifo(path):
  os.mkfifo(path / "a" / "m.png")


def endless(path):
  (path / "b.png").symlink_to("/dev/zero")


def itself(path):
  (path / "deep").mkdir()
  (path / "deep" / "up").symlink_to("..")


def tree_of_links(path):
  """2^25 paths, and none of them a loop."""
  for level in range(25):
    (path / f"l{level}").mkdir()
  for level in range(24):
    for name in "xy":
      (path / f"l{level}" / name).symlink_to(f"../l{level + 1}")


@pytest.mark.parametrize("trap", [fifo, endless, itself, tree_of_links])
def test_a_folder_is_no_trap(tmp_path, trap):
  spec = write_folder(tmp_path / "set", PIXELS[3])
  (tmp_path / "set" / "a").mkdir(exist_ok=True)
  trap(tmp_path / "set")
  began = time.monotonic()
  with pytest.raises(UserError):
    images(open_source(spec))
  assert time.monotonic() - began < 10


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path):
  write_folder(tmp_path / "set", PIXELS[3], None)
  (tmp_path / "linked").mkdir()
  (tmp_path / "linked" / "class").symlink_to(tmp_path / "set")
  assert len(open_source(f"folder:{tmp_path / 'linked'}")) == len(PIXELS[3])


def written_zip(path, *entries: tuple[str, bytes]) -> str:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in entries:
      archive.writestr(name, data)
  return f"zip:{path}"


def test_a_zip_that_swells(tmp_path, monkeypatch):
  monkeypatch.setattr(entries, "MAX_FILE", 1 << 20)
  monkeypatch.setattr(bounded, "LARGE", 1 << 20)
  picture = ("0.png", png(PIXELS[3][0]))
  big = bytes((1 << 20) + 1)
  with pytest.raises(UserError, match="more than"):
    open_source(written_zip(tmp_path / "a.zip", picture, ("dataset.json", big)))
  with pytest.raises(UserError, match="more than"):
    images(open_source(written_zip(tmp_path / "b.zip", picture, ("1.png", big))))
  labels = b'{"labels": [' + b"[]," * 20_000 + b"[]]}"
  with pytest.raises(UserError, match="would come to"):
    open_source(written_zip(tmp_path / "c.zip", picture, ("dataset.json", labels)))


def test_a_zip_whose_entries_lie_in_one_place(tmp_path):
  written_zip(tmp_path / "a.zip", ("0.png", bytes(200_000)))
  with zipfile.ZipFile(tmp_path / "a.zip") as archive:
    entry = archive.infolist()[0]
    archive.filelist = []
    copies = []
    for number in range(300):
      copy = zipfile.ZipInfo(f"{number}.png")
      for field in ("compress_type", "compress_size", "file_size", "header_offset", "CRC"):
        setattr(copy, field, getattr(entry, field))
      copies.append(copy)
  with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
    archive.filelist += copies
    archive._didModify = True
  with pytest.raises(UserError, match="in a file of"):
    open_source(f"zip:{tmp_path / 'a.zip'}")


def test_a_name_in_a_zip_does_not_speak_to_the_terminal(tmp_path):
  spec = written_zip(tmp_path / "a.zip", ("\x1b]0;mine\x07\u202egnp.png", b"\x89PNG\r\n\x1a\nno"))
  with pytest.raises(UserError) as caught:
    images(open_source(spec))
  assert str(caught.value).isprintable() and "\\x1b" in str(caught.value)


@pytest.mark.parametrize("label", [MAX_CLASSES, 10**6, 2**31 - 1, 2**40])
def test_a_class_number_that_no_set_has(tmp_path, label):
  spec = write_folder(tmp_path / "set", PIXELS[3][:2], None)
  names = sorted(path.name for path in (tmp_path / "set").glob("*.png"))
  text = json.dumps({"labels": [[names[0], 0], [names[1], label]]})
  (tmp_path / "set" / "dataset.json").write_text(text)
  np.savez(tmp_path / "a.npz", PIXELS[3][:2], np.array([0, label]))
  for source in (spec, f"npz:{tmp_path / 'a.npz'}"):
    with pytest.raises(UserError, match=str(MAX_CLASSES)):
      open_source(source)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_latents_whose_deviation_is_none(tmp_path, value):
  np.save(tmp_path / "mean.npy", np.zeros((5, 4, 4, 2), np.float32))
  deviations = np.ones((5, 4, 4, 2), np.float32)
  deviations[3, 1, 2, 1] = value
  np.save(tmp_path / "std.npy", deviations)
  with pytest.raises(UserError, match="finite deviations"):
    open_source(f"latents:{tmp_path}")
