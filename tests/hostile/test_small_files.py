"""What a small file makes us allocate or compute is bounded by the bytes of the whole file."""

import os
import pickle
import struct
import time
import tracemalloc

import pytest

from cm_jax import convert
from cm_jax.convert.readers import pickles
from cm_jax.convert.readers.msgpack_files import read_msgpack
from cm_jax.convert.readers.pickles import Refused
from cm_jax.errors import UserError


def again(module: str, name: str, payload: bytes, times: int, keep: bool = True) -> bytes:
  """Hand one memoised payload to an allowed function so many times, and keep what it returns."""
  head = b"\x80\x04" + payload + b"\x940" + f"c{module}\n{name}\n".encode() + b"\x940]\x940h\x02"
  return head + (b"h\x01h\x00\x85Ra" if keep else b"h\x01h\x00\x85R0") * times + b"."


def blob(data: bytes) -> bytes:
  return b"B" + struct.pack("<I", len(data)) + data


def legacy_storage(numbers: int, filler: bytes = b"") -> bytes:
  word = lambda text: b"X" + struct.pack("<I", len(text)) + text
  magic = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
  storage = b"(" + word(b"storage") + b"ctorch\nHalfStorage\n" + word(b"k") + word(b"cpu")
  storage += b"J" + struct.pack("<i", numbers) + b"NtQ."
  head = b"".join(pickle.dumps(value, 2) for value in magic)
  tail = pickle.dumps(["k"], 2) + struct.pack("<q", numbers) + bytes(2 * numbers)
  return head + b"\x80\x02" + filler + storage + tail


def modules(count: int) -> bytes:
  """As many modules that all have one dict of as many buffers."""
  word = lambda text: b"X" + struct.pack("<I", len(text)) + text.encode()
  names = [f"{number:05d}" for number in range(count)]
  make = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n\x940"
  buffers = b"}(" + b"".join(word(name) + b"N" for name in names) + b"u\x940"
  shared = b"}(" + word("_buffers") + b"h\x01u\x940"
  module = lambda state: (
    b"h\x00}("
    + word("type")
    + word("class")
    + word("class_name")
    + word("A")
    + word("state")
    + state
    + b"u\x85R"
  )
  children = b"".join(word(name) + module(b"h\x02") for name in names)
  top = b"}(" + word("_modules") + b"}(" + children + b"uu"
  return b"\x80\x04" + make + buffers + shared + b"}(" + word("ema") + module(top) + b"u."


def pairs(count: int) -> bytes:
  return b"](" + b"".join(b"U\x05%05dK\x01\x86" % number for number in range(count)) + b"e"


ROOT = ("torch.storage", "_load_from_bytes")
FILES = {
  "one blob again and again": lambda: again(*ROOT, blob(legacy_storage(300_000)), 500),
  "one blob, thrown away each time": lambda: again(
    *ROOT, blob(legacy_storage(9, b"}0" * 90_000)), 900, False
  ),
  "sizes of a list": lambda: again("torch", "Size", b"](" + b"K\x01" * 4_000 + b"e", 800),
  "sizes of bytes": lambda: again("torch", "Size", blob(bytes(1_000_000)), 300),
  "sizes of a text": lambda: again("torch", "Size", b"X" + struct.pack("<I", 9**6) + b"a" * 9**6, 300),
  "dicts of one list": lambda: again(
    "collections",
    "OrderedDict",
    b"](" + b"".join(b"U\x05%05dK\x01\x86" % i for i in range(9_000)) + b"e",
    600,
  ),
  "a tensor's shape": lambda: again(
    "torch._utils", "_rebuild_tensor_v2", b"](" + b"K\x01" * 90_000 + b"e", 900
  ),
  "modules that share their buffers": lambda: modules(1_000),
}


REFUSED = ("again and again", "opcodes", "sizes of at most 8", "8 dimensions", "modules, with names")


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_that_uses_a_payload_many_times(tmp_path, monkeypatch, name):
  monkeypatch.setattr(pickles, "MAX_OPCODES", 100_000)
  file = tmp_path / "network-snapshot.pkl"
  file.write_bytes(FILES[name]())
  tracemalloc.start()
  began = time.process_time()
  with pytest.raises(UserError) as caught:
    convert.read(file)
  seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 20 * file.stat().st_size + (8 << 20) and seconds < 20
  assert any(words in str(caught.value) for words in REFUSED), caught.value


def test_a_msgpack_file_of_empty_maps():
  with pytest.raises(Refused, match="at most"):
    read_msgpack(b"\xdc\x0f\xff" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 4095)


def test_a_checkpoint_that_is_a_pipe(tmp_path):
  os.mkfifo(tmp_path / "cd.pt")
  with pytest.raises(UserError, match="no regular file"):
    convert.read(tmp_path / "cd.pt")
