"""The readers of foreign files: they read what the peers write, build arrays only, and refuse all else."""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from cm_jax import convert
from cm_jax.convert.readers import pickles
from cm_jax.convert.readers.msgpack_files import read_msgpack
from cm_jax.convert.readers.persistence import ALLOWED, read_snapshot
from cm_jax.convert.readers.pickles import Bounded, Refused, read_pickle
from cm_jax.convert.readers.torch_files import read_legacy, read_zip
from cm_jax.errors import UserError
from tests.convert import writers
from tests.convert.writers import Call, Name

ARRAYS = {
  "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "a.bias": np.array(1.5, np.float32),
  "half": np.array([0.5, -2.0], np.float16),
  "brain": np.array([0.5, -2.0], jnp.bfloat16),
  "empty": np.zeros((0, 3), np.float32),
}


def arrays_of(content):
  return {name: tensor.array() for name, tensor in content.items()}


def bounded(data: bytes) -> Bounded:
  return Bounded(io.BytesIO(data))


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_state_dicts_round_trip(container):
  content, storages = writers.state_dict(ARRAYS)
  data = (
    writers.torch_zip(content, storages) if container == "zip" else writers.torch_legacy(content, storages)
  )
  read = arrays_of((read_zip if container == "zip" else read_legacy)(bounded(data)))
  assert list(read) == list(ARRAYS)
  for name, array in ARRAYS.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array)


def test_views_of_one_storage():
  storage = writers.Stored("0", np.arange(12, dtype=np.float32))
  content = {
    "transposed": writers.tensor(storage, (3, 2), (1, 3), 2),
    "tail": writers.tensor(storage, (4,), (1,), 8),
  }
  read = arrays_of(read_zip(bounded(writers.torch_zip(content, [storage]))))
  np.testing.assert_array_equal(read["transposed"], [[2, 5], [3, 6], [4, 7]])
  np.testing.assert_array_equal(read["tail"], [8, 9, 10, 11])


def test_snapshots_round_trip():
  source = "import os; os.system('touch /tmp/cm_jax_test_ran')"
  arrays = {name: array for name, array in ARRAYS.items() if array.dtype == np.float32}
  data = writers.snapshot("EDMPrecond", {"img_resolution": 8}, arrays, source, loss_fn=None)
  snapshot = read_snapshot(bounded(data))
  assert (snapshot.cls, snapshot.kwargs) == ("EDMPrecond", {"img_resolution": 8})
  assert sorted(snapshot.arrays) == sorted(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(snapshot.arrays[name], array)
  assert not os.path.exists("/tmp/cm_jax_test_ran")


def test_plain_pickles_of_every_protocol():
  value = {"a": [1, -2.5, None, True, "x", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "big": 2**100, "n": -1}
  for protocol in range(6):
    assert read_pickle(pickle.dumps(value, protocol), {}) == value
    if protocol >= 4:
      more = value | {"bytes": b"y", "set": {"k", 3}, "frozen": frozenset("ab")}
      assert read_pickle(pickle.dumps(more, protocol), {}) == more


EVIL = {
  "os.system": Call(Name("os", "system"), "touch MARKER"),
  "posix.system": Call(Name("posix", "system"), "touch MARKER"),
  "eval": Call(Name("builtins", "eval"), "open('MARKER', 'w')"),
  "getattr": Call(Name("builtins", "getattr"), Name("os", "system"), "__call__"),
  "import": Call(Name("importlib", "import_module"), "antigravity"),
  "dotted": Call(Name("collections", "OrderedDict.fromkeys"), "ab"),
  "torch.load": Call(Name("torch", "load"), "MARKER"),
  "partial": Call(Name("functools", "partial"), Name("os", "system"), "touch MARKER"),
}


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
@pytest.mark.parametrize("wrap", ["plain", "ema", "state", "zip", "legacy", "nested"])
def test_names_outside_the_list_are_refused_and_nothing_runs(evil, wrap, tmp_path):
  marker = tmp_path / "marker"
  evil = Call(
    evil.function, *(arg.replace("MARKER", str(marker)) if isinstance(arg, str) else arg for arg in evil.args)
  )
  nested = Call(Name("torch.storage", "_load_from_bytes"), writers.torch_legacy({"x": evil}, []))
  data = {
    "plain": lambda: writers.dumps(evil),
    "ema": lambda: writers.dumps({"ema": evil}, 4),
    "state": lambda: writers.dumps(
      {"ema": writers.persistent("EDMPrecond", {"_modules": {"model": evil}})}, 4
    ),
    "zip": lambda: writers.torch_zip({"x": evil}, []),
    "legacy": lambda: writers.torch_legacy({"x": evil}, []),
    "nested": lambda: writers.dumps(
      {"ema": writers.persistent("EDMPrecond", {"_parameters": {"w": nested}})}, 4
    ),
  }[wrap]()
  (tmp_path / "file").write_bytes(data)
  with pytest.raises(UserError, match="names only") as error:
    convert.convert(tmp_path / "file", tmp_path / "out")
  assert "\n" not in str(error.value)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_getattr_yields_something_inert():
  loss = writers.persistent("ECMLoss", {"c": 0.0})
  content = read_pickle(writers.dumps({"t": Call(Name("builtins", "getattr"), loss, "t_to_r")}), ALLOWED)
  assert isinstance(content["t"], pickles.Inert)
  with pytest.raises(Refused):
    read_pickle(writers.dumps(Call(Name("builtins", "getattr"), "x", "upper")), ALLOWED)


@pytest.mark.parametrize(
  "opcode", [b"\x82\x01", b"\x97", b"(cos\nsystem\no", b"(S'x'\nios\nsystem\n", b"P0\n"]
)
def test_opcodes_that_weights_do_not_need(opcode):
  with pytest.raises((Refused, ValueError, IndexError)):
    read_pickle(b"\x80\x04" + opcode + b".", ALLOWED)


@pytest.mark.slow
def test_deep_and_hashed_values_do_not_crash():
  deep = writers.deep(300_000)
  assert isinstance(read_pickle(deep, {}), tuple)
  as_key = b"\x80\x04}" + deep[2:-1] + b"K\x01s."
  with pytest.raises(TypeError, match="as a key"):
    read_pickle(as_key, {})
  pairs = b"\x80\x04ccollections\nOrderedDict\n](" + deep[2:-1] + b"K\x01\x86e\x85R."
  with pytest.raises(Refused, match="string keys"):
    read_pickle(pairs, ALLOWED)


def test_a_pickle_that_never_ends_is_cut_off(monkeypatch):
  monkeypatch.setattr(pickles, "MAX_OPCODES", 1000)
  with pytest.raises(Refused, match="1000 opcodes"):
    read_pickle(b"\x80\x04" + b"}" * 2000 + b".", {})


def huge_zip() -> bytes:
  storage = writers.Stored("0", np.zeros(4, np.float32))
  storage.array = np.broadcast_to(np.float32(0), (2_500_000_000,))
  content = {"w": writers.tensor(storage, (2_500_000_000,))}
  return writers.torch_zip(content, [], **{"data/0": bytes(16)})


def huge_legacy() -> bytes:
  storage = writers.Stored("0", np.broadcast_to(np.float32(0), (2_500_000_000,)))
  return (
    writers.torch_legacy({"w": writers.tensor(storage, (2_500_000_000,))}, [])[:-5]
    + writers.dumps(["0"])
    + struct.pack("<q", 2_500_000_000)
  )


def repeated_zip() -> bytes:
  storage = writers.Stored("0", np.zeros(4, np.float32))
  return writers.torch_zip({"w": writers.tensor(storage, (50_000, 50_000), (0, 0))}, [storage])


def shared_zip() -> bytes:
  storage = writers.Stored("0", np.zeros(100_000, np.float32))
  return writers.torch_zip({f"w{i}": writers.tensor(storage, (100_000,)) for i in range(1000)}, [storage])


def huge_directory() -> bytes:
  end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 10 << 30, 0)
  locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 64, 1)
  return (
    b"PK\x03\x04"
    + bytes(60)
    + end64
    + locator
    + b"PK\x05\x06"
    + struct.pack("<HHHHIIH", *[2**16 - 1] * 4, *[2**32 - 1] * 2, 0)
  )


HUGE = {
  "zip": huge_zip,
  "legacy": huge_legacy,
  "repeated": repeated_zip,
  "shared": shared_zip,
  "binbytes8": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 10 << 30) + b"x.",
  "binunicode8": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 10 << 30) + b"x.",
  "long4": lambda: b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
  "frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 10 << 30) + b"}.",
  "memo": lambda: b"\x80\x04}r\xff\xff\xff\xff.",
  "msgpack array": lambda: b"\x81\xa6params" + b"\xdd\x00\xff\xff\xff" * 1000,
  "msgpack bytes": lambda: b"\x81\xa6params\xc6\xff\xff\xff\xff",
  "msgpack claim": lambda: msgpack.packb(
    {"params": {"w": msgpack.ExtType(1, msgpack.packb(((50_000, 50_000), "float32", b"")))}}
  ),
  "zip64": huge_directory,
}


@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE)
def test_a_small_file_that_claims_gigabytes(make, tmp_path):
  (tmp_path / "file").write_bytes(make())
  assert (tmp_path / "file").stat().st_size < 1_000_000
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  with open("/proc/self/statm") as statm:
    here = int(statm.read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (here + (256 << 20), hard))
  try:
    with pytest.raises(UserError) as error:
      convert.read(tmp_path / "file")
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
  assert "MemoryError" not in str(error.value)


def test_damage_is_found():
  content, storages = writers.state_dict({"w": np.arange(1000, dtype=np.float32)})
  data = writers.torch_zip(content, storages)
  flipped = bytearray(data)
  flipped[data.index(storages[0].array.tobytes()) + 2000] ^= 1
  with pytest.raises(zipfile.BadZipFile, match="CRC"):
    read_zip(bounded(bytes(flipped)))
  version = bytearray(data)
  version[data.index(b"3\n")] ^= 1
  with pytest.raises(zipfile.BadZipFile, match="CRC"):
    read_zip(bounded(bytes(version)))
  legacy = writers.torch_legacy(content, storages)
  for cut in (10, 200, len(legacy) - 1):
    with pytest.raises((Refused, ValueError)):
      read_legacy(bounded(legacy[:cut]))


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"compression": zipfile.ZIP_DEFLATED}, "neither compressed"),
    ({"byteorder": b"big"}, "little-endian"),
    ({"data.pkl": writers.dumps({"w": 1})}, "state dict"),
    ({"sub/data.pkl": b""}, "state dict|time_embed"),
  ],
)
def test_zips_that_torch_does_not_write(change, match, tmp_path):
  content, storages = writers.state_dict({"w": np.zeros(10, np.float32)})
  (tmp_path / "file.pt").write_bytes(writers.torch_zip(content, storages, **change))
  with pytest.raises(UserError, match=match):
    convert.read(tmp_path / "file.pt")


def test_modules_that_are_not_a_tree():
  inner = writers.module({"w": np.zeros(2, np.float32)})
  shared = writers.persistent(
    "EDMPrecond", {"_modules": {"a": inner, "b": inner}, "_init_args": (), "_init_kwargs": {}}
  )
  with pytest.raises(Refused, match="one place"):
    read_snapshot(bounded(writers.dumps({"ema": shared}, 4)))
  for _ in range(30):
    inner = writers.Built(Name("torch.nn.modules.container", "ModuleDict"), {"_modules": {"a": inner}})
  chain = writers.persistent("EDMPrecond", {"_modules": {"a": inner}})
  with pytest.raises(Refused, match="one place"):
    read_snapshot(bounded(writers.dumps({"ema": chain}, 4)))


def test_msgpack_takes_what_flax_writes_only():
  import flax.serialization

  state = {
    "params": {"a": np.ones((2, 3), np.float32), "b": jnp.ones(2, jnp.bfloat16)},
    "step": 3,
    "lr": np.float32(0.5),
  }
  read = read_msgpack(flax.serialization.to_bytes(state))
  np.testing.assert_array_equal(read["params"]["a"], np.ones((2, 3)))
  assert read["params"]["b"].dtype == jnp.bfloat16 and read["lr"] == 0.5
  packed = lambda *fields: msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(fields))})
  arrays = [((2,), "object", bytes(16)), ((2,), "float32", bytes(9)), ((-2, -2), "float32", bytes(16))]
  maps = [msgpack.packb({"a": msgpack.ExtType(77, b"x")}), msgpack.packb({1: 2}), b"\x82\xa1a\x01\xa1a\x02"]
  for bad in [*(packed(*fields) for fields in arrays), *maps]:
    with pytest.raises((Refused, ValueError, TypeError)):
      read_msgpack(bad)


@pytest.mark.parametrize(
  "content",
  [b"", b"<html><body>404</body></html>", b"\x93NUMPY\x01\x00", b"\x80", bytes(100), b"\x89HDF\r\n\x1a\n"],
)
def test_other_files(content, tmp_path):
  (tmp_path / "file").write_bytes(content)
  with pytest.raises(UserError) as error:
    convert.convert(tmp_path / "file", tmp_path / "out")
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_formats_are_told_apart(tmp_path):
  content, storages = writers.state_dict(ARRAYS)
  files = {
    "openai": [writers.torch_zip(content, storages), writers.torch_legacy(content, storages)],
    "edm": [writers.snapshot("EDMPrecond", {}, {})],
    "ect": [writers.snapshot("ECMPrecond", {}, {}, "class ECMPrecond: pass")],
    "jcm": [msgpack.packb({"params": {}}), msgpack.packb({str(i): i for i in range(20)})],
  }
  for name, contents in files.items():
    for data in contents:
      (tmp_path / "file").write_bytes(data)
      assert convert.detect(tmp_path / "file") == name
  assert convert.detect(tmp_path) == "cm_jax"
  with pytest.raises(UserError, match="from = openai: expected jcm"):
    convert.read(tmp_path / "file", "openai")
  with pytest.raises(UserError, match="did you mean it"):
    convert.read(tmp_path / "file", "jmc")
  with pytest.raises(UserError, match="No such file"):
    convert.read(tmp_path / "absent")


def test_reading_imports_neither_torch_nor_the_names_of_a_file(tmp_path):
  (tmp_path / "file.pkl").write_bytes(writers.snapshot("EDMPrecond", {}, {}))
  code = (
    "import sys; from cm_jax import convert\n"
    "try: convert.read(sys.argv[1])\nexcept Exception as error: print(type(error).__name__)\n"
    "names = ('torch', 'torch_utils', 'torch_utils.persistence', 'dnnlib')\n"
    "print([name for name in names if name in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path / "file.pkl")], capture_output=True, text=True, check=True
  )
  assert done.stdout.split("\n")[:2] == ["UserError", "[]"]
