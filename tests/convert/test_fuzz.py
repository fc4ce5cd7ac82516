"""Damaged and altered checkpoints: whatever the bytes, our own error, bounded memory, and nothing runs."""

import glob
import io
import resource
import struct
import time
import zipfile
from pathlib import Path

import flax.serialization
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cm_jax import convert
from cm_jax.errors import UserError
from tests import needs
from tests.convert import writers
from tests.convert.writers import Call, Name

SMALL = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.ones(3, np.float32)}
TOKENS = (
  *(
    b"\x00",
    b"\xff",
    b".",
    b"R",
    b"b",
    b"}",
    b"(",
    b"u",
    b"\x93",
    b"\x94",
    b"\x81",
    b"0",
    b"cposix\nsystem\n",
    b"\x8c\x05posix\x8c\x06system\x93",
  ),
  *(
    struct.pack("<I", 2**32 - 1),
    struct.pack("<Q", 10 << 30),
    struct.pack("<Q", 2**63),
    b"\x8e\xff\xff\xff\xff\x01\x00\x00\x00",
    b"\xdd\x7f\xff\xff\xff",
  ),
  b"\x8c\x1dtouch /tmp/cm_jax_fuzz_marker\x85R",
)
MARKERS = "/tmp/cm_jax_fuzz_marker*"
MEMORY = 512 << 20


def own_files() -> dict[str, bytes]:
  """Return small files of every container, with everything a genuine one has."""
  content, storages = writers.state_dict(SMALL)
  kwargs = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 0,
    "model_type": "SongUNet",
    "channel_mult": [1, 2],
  }
  extra = {
    "loss_fn": writers.persistent(
      "ECMLoss", {"t": Call(Name("builtins", "getattr"), writers.persistent("L", {}), "t")}
    )
  }
  scalar = Call(
    Name("numpy._core.multiarray", "scalar"), Call(Name("numpy", "dtype"), "f8", False, True), bytes(8)
  )
  state = {
    "params_ema": {"a": SMALL["a.weight"], "b": {"c": SMALL["a.bias"]}},
    "step": 3,
    "lr": np.float32(0.1),
  }
  return {
    "zip": writers.torch_zip(content, storages),
    "legacy": writers.torch_legacy(content, storages),
    "edm": writers.snapshot(
      "EDMPrecond",
      kwargs,
      {f"model.{name}": array for name, array in SMALL.items()},
      augment_pipe=scalar,
      **extra,
    ),
    "msgpack": flax.serialization.to_bytes(state),
  }


def seeds() -> dict[str, bytes]:
  """Return the files to break: our own, and the golden ones where they are."""
  found = {
    path: Path(path).read_bytes()
    for case in ("H_ckpt_*/*", "G_jcm_checkpoint_*/checkpoint_*")
    for path in glob.glob(str(needs.GOLDEN / case))
  }
  return own_files() | {
    Path(path).name: data
    for path, data in sorted(found.items())
    if Path(path).suffix not in (".npz", ".json")
  }


SEEDS = seeds()
edit = st.tuples(
  st.sampled_from(["flip", "put", "insert", "cut", "copy", "end"]),
  st.floats(0, 1),
  st.floats(0, 1),
  st.sampled_from(TOKENS),
)


def alter(data: bytes, edits: list) -> bytes:
  """Apply edits; positions are fractions, near the start for small ones (where headers and pickles are)."""
  buffer = bytearray(data)
  for kind, where, length, token in edits:
    at = int(where**3 * len(buffer))
    span = 1 + int(length**4 * min(len(buffer) - at, 4096))
    if kind == "flip" and buffer:
      buffer[min(at, len(buffer) - 1)] ^= 1 << int(length * 7.99)
    elif kind == "put":
      buffer[at : at + len(token)] = token
    elif kind == "insert":
      buffer[at:at] = token
    elif kind == "cut":
      del buffer[at : at + span]
    elif kind == "copy":
      buffer[at:at] = buffer[at : at + span]
    elif kind == "end":
      del buffer[at + span :]
  return bytes(buffer)


def alter_inside(data: bytes, edits: list) -> bytes:
  """Alter a record of a zip and put the CRC right again, so that the change is not found at the door."""
  source = zipfile.ZipFile(io.BytesIO(data))
  names = source.namelist()
  victim = (
    next(name for name in names if name.endswith("data.pkl"))
    if len(edits) % 3
    else names[len(edits) % len(names)]
  )
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as target:
    for name in names:
      target.writestr(name, alter(source.read(name), edits) if name == victim else source.read(name))
  return buffer.getvalue()


def check(data: bytes, path: Path) -> None:
  path.write_bytes(data)
  start = time.process_time()
  try:
    for name in (None, "edm", "openai", "jcm"):
      try:
        convert.read(path, name)
      except UserError as error:
        assert "\n" not in str(error) and "MemoryError" not in str(error)
  finally:
    path.unlink()
  assert time.process_time() - start < 20
  assert not glob.glob(MARKERS)


@pytest.fixture
def little_memory():
  """At most 512 MB more than now."""
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
  yield
  resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(max_examples: int, folder: Path, names: list[str], inside: bool) -> None:
  @hypothesis.settings(
    max_examples=max_examples,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(st.sampled_from(names), st.lists(edit, min_size=1, max_size=6))
  def fuzz(name, edits):
    check((alter_inside if inside else alter)(SEEDS[name], edits), folder / "file")

  fuzz()


def test_seeds_are_read(tmp_path):
  for name in ("edm", "msgpack", "zip", "legacy"):
    (tmp_path / "file").write_bytes(SEEDS[name])
    try:
      convert.read(tmp_path / "file")
    except UserError as error:
      assert "architecture" in str(error), name  # read whole; only the toy names are unknown


@pytest.mark.parametrize("name", own_files())
def test_a_few_altered_files(name, tmp_path, little_memory):
  run(60, tmp_path, [name], inside=False)


@pytest.mark.slow
def test_altered_files(tmp_path, little_memory):
  run(2000, tmp_path, list(SEEDS), inside=False)


@pytest.mark.slow
def test_altered_small_files(tmp_path, little_memory):
  run(10_000, tmp_path, list(own_files()), inside=False)


@pytest.mark.slow
def test_altered_records(tmp_path, little_memory):
  run(1200, tmp_path, [name for name, data in SEEDS.items() if data.startswith(b"PK")], inside=True)
