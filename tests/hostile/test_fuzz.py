"""Every reader of a file, whatever its bytes: our own error or a value, never another exception.

What tests/convert/test_fuzz.py does for foreign checkpoints, for all that lies in runs, weights folders and
data sets. Seeded: a failure is found again.
"""

import contextlib
import hashlib
import io
import json
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from cm_jax.assembly import load_model
from cm_jax.assembly.checks import check_run
from cm_jax.assembly.complete import current
from cm_jax.assembly.method import make_parts
from cm_jax.assembly.models import model_of
from cm_jax.assembly.resume import check_same_run, reconcile
from cm_jax.data.sources import images, open_source
from cm_jax.errors import DAMAGE, UserError, damage_told
from cm_jax.evaluation import records
from cm_jax.evaluation.features import load_classifier
from cm_jax.storage import lines, pictures, run
from cm_jax.training import step_folder
from cm_jax.training.averages import snapshots
from tests import tiny
from tests.cli.weights import weights_folder
from tests.data.test_sources import PIXELS, png, write_tfds

VALUES = (
  *(None, True, 0, -1, 1, 3, 2**31, 10**15, 1e308, -1e-320, 0.5, "", "toy", "\x1b[2J", "\0", "a" * 3000),
  *([], [1], ["x"], [[[[]]]], {}, {"name": "toy"}, {"name": ["edm"]}, {"name": None}, {"": {"": {}}}),
)
TOKENS = (
  b"[",
  b"{",
  b"}",
  b'"',
  b",",
  b":",
  b"\xff",
  b"\xe2\x82",
  b"\\ud800",
  b"1e999",
  b"NaN",
  b"[" * 3000,
  b"\n",
)


def altered(data: bytes, chance: random.Random) -> bytes:
  """Break bytes: flips, cuts, copies, tokens."""
  buffer = bytearray(data)
  for _ in range(chance.randint(1, 4)):
    at = chance.randrange(len(buffer) + 1)
    match chance.randrange(5):
      case 0 if at < len(buffer):
        buffer[at] ^= 1 << chance.randrange(8)
      case 1:
        del buffer[at : at + chance.randint(1, 40)]
      case 2:
        buffer[at:at] = chance.choice(TOKENS)
      case 3:
        buffer[at:at] = buffer[at : at + chance.randint(1, 60)]
      case _ if chance.random() < 0.1:
        del buffer[at:]
  return bytes(buffer)


def changed(value: object, chance: random.Random) -> object:
  """Put another value somewhere into JSON, take something away, or add a key."""
  inner = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
  if not inner or chance.random() < 0.15:
    return chance.choice(VALUES)
  key = chance.choice(inner)
  copy = value.copy()  # type: ignore[attr-defined]
  kind = chance.random()
  if kind < 0.1:
    del copy[key]
  elif kind < 0.15 and isinstance(copy, dict):
    copy[chance.choice(("name", "x", "", "sigma_min"))] = chance.choice(VALUES)
  else:
    copy[key] = changed(copy[key], chance)
  return copy


def broken(data: bytes, chance: random.Random) -> bytes:
  """Break a file: its bytes, or, of JSON lines, a value of one of them."""
  if chance.random() < 0.5 or not data.startswith(b"{"):
    return altered(data, chance)
  text = data.decode()
  rows = [json.dumps(json.loads(text))] if text.startswith("{\n") else text.splitlines()
  at = chance.randrange(len(rows))
  rows[at] = json.dumps(changed(json.loads(rows[at]), chance))
  return ("\n".join(rows) + "\n").encode()


def resumed(folder: Path) -> None:
  """What `train --workdir` does with a stored config before any data is opened."""
  stored = run.read_config(folder)
  assert stored is not None
  config = reconcile(ml_collections.ConfigDict(current(stored)), stored)
  with damage_told("config.json", "the config that training wrote"):  # as cli/train.py
    make_parts(config)
    check_run(config.run)
  check_same_run(a_config(), stored, "config.json")


def a_config() -> ml_collections.ConfigDict:
  config = tiny.config()
  config.data.image_shape = (8, 8, 1)
  return config


def a_run(folder: Path) -> Path:
  run.write_config(folder, a_config())
  text = json.dumps(json.loads((folder / "config.json").read_text()))
  (folder / "config.json").write_text(text)
  return folder / "config.json"


def some_records(folder: Path) -> Path:
  one = records.Record(
    metric="fd", value=1.5, n=3, sigmas=(80.0, 0.5), sampler={"name": "heun"}, versions={"jax": "1"}
  )
  records.append(folder / "evaluations.jsonl", [one, one])
  return folder / "evaluations.jsonl"


def some_metrics(folder: Path) -> Path:
  lines.append(folder / "metrics.jsonl", [{"step": step, "loss": 0.5} for step in range(5)])
  return folder / "metrics.jsonl"


def some_sigmas(folder: Path) -> Path:
  (folder / "sigmas.json").write_text(json.dumps({"2": {"sigmas": [80.0, 0.8], "value": 1.0}}))
  return folder / "sigmas.json"


def a_model(folder: Path, name: str) -> Path:
  weights_folder(folder / "w")
  file = folder / "w" / "model.json"
  info = json.loads(file.read_text())
  info.pop("weights_sha256", None)
  file.write_text(json.dumps(info))
  return folder / "w" / name


def a_zip(folder: Path) -> Path:
  with zipfile.ZipFile(folder / "a.zip", "w") as archive:
    archive.writestr("0.png", png(PIXELS[3][0]))
    archive.writestr("1.png", png(PIXELS[3][1]))
    archive.writestr("dataset.json", json.dumps({"labels": [["0.png", 0], ["1.png", 1]]}))
  return folder / "a.zip"


def a_described_folder(folder: Path) -> Path:
  (folder / "set").mkdir()
  for number in range(2):
    (folder / "set" / f"{number}.png").write_bytes(png(PIXELS[3][number]))
  (folder / "set" / "dataset.json").write_text(json.dumps({"labels": [["0.png", 0], ["1.png", 1]]}))
  return folder / "set" / "dataset.json"


def an_npz(folder: Path) -> Path:
  content = io.BytesIO()
  np.savez(content, PIXELS[3][:2], np.arange(2))
  (folder / "a.npz").write_bytes(content.getvalue())
  return folder / "a.npz"


def latents(folder: Path, name: str) -> Path:
  (folder / "l").mkdir()
  for file in ("mean", "std"):
    np.save(folder / "l" / f"{file}.npy", np.ones((3, 2, 2, 2), np.float32))
  (folder / "l" / "stats.json").write_text(json.dumps({"shift": [0.0, 0.0], "scale": [1.0, 2.0]}))
  return folder / "l" / name


def features(folder: Path) -> Path:
  content = safetensors.numpy.save({"a/b": np.ones(3, np.float32)})
  (folder / "features.safetensors").write_bytes(content)
  about = {
    "num_classes": 10,
    "scale": 1.0,
    "accuracy": 0.9,
    "seed": 0,
    "sha256": hashlib.sha256(content).hexdigest(),
  }
  (folder / "features.json").write_text(json.dumps(about))
  return folder / "features.json"


def lmdb_bytes(values: list[bytes], page: int = 512, shared: int = 1) -> bytes:
  """An LMDB file: two pages that describe it, a leaf, and a page for each value, `shared` entries each."""
  entries, number = b"", len(values) * shared
  places, at = b"", page
  for index in range(number):
    value = values[index % len(values)]
    key = f"{index:02d}".encode()
    entry = struct.pack("<IHH", len(value), 1, len(key)) + key + struct.pack("<Q", 3 + index % len(values))
    entries, at = entry + entries, at - len(entry)
    places += struct.pack("<H", at)
  leaf = struct.pack("<QHHHH", 2, 0, 2, 16 + len(places), at) + places
  leaf += bytes(at - len(leaf)) + entries
  table = struct.pack("<IHHQQQQQ", 0, 0, 1, 0, 1, len(values), number, 2)
  free = struct.pack("<IHHQQQQQ", page, 0, 0, 0, 0, 0, 0, 2**64 - 1)
  about = struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 1 << 20) + free + table
  heads = [struct.pack("<QHHI", n, 0, 8, 0) + about + struct.pack("<QQ", 9, n) for n in range(2)]
  own = [struct.pack("<QHHI", 3 + n, 0, 4, 1) + value for n, value in enumerate(values)]
  return b"".join(part.ljust(page, b"\0") for part in (*heads, leaf, *own))


def an_lmdb(folder: Path) -> Path:
  (folder / "data.mdb").write_bytes(lmdb_bytes([png(image[:6, :7]) for image in PIXELS[3][:3]]))
  return folder / "data.mdb"


def a_snapshot(folder: Path) -> Path:
  path = folder / "snapshots" / "step_00000030.safetensors"
  arrays = {f"{name}/net/w": np.arange(5, dtype=np.float32) for name in ("a", "b")}
  snapshots.write(path, 30, {"a": 0.07, "b": 0.11}, arrays)
  return path


def combined(folder: Path) -> None:
  found = snapshots.choose(folder)
  snapshots.combine(found, np.ones((sum(len(one.sigma_rels) for one in found), 1)))


def a_step(folder: Path, name: str) -> Path:
  """What a checkpoint's step says of itself, as training and Orbax write it."""
  step = folder / "checkpoints" / "40"
  extra = {"format": 2, "fingerprint": "ab", "seconds": 1.5, "config_sha256": "cd", "config": {"seed": 0}}
  leaf = {
    "key_metadata": [{"key": "ema", "key_type": 2}, {"key": "net", "key_type": 2}],
    "value_metadata": {},
  }
  for item, about in (
    ("extra/metadata", extra),
    ("averages/_METADATA", {"tree_metadata": {"('ema', 'net')": leaf}}),
  ):
    (step / item).parent.mkdir(parents=True)
    (step / item).write_text(json.dumps(about))
  step_folder.seal(step)
  (step / "sha256.json").write_text(json.dumps(json.loads((step / "sha256.json").read_text())))
  return step / name


def unsealed(step: Path) -> None:
  if reason := step_folder.damage(step, ["extra", "averages"]):
    raise UserError("checkpoint", str(step), reason)


def saved(folder: Path) -> Path:
  (folder / "saved.json").write_text(json.dumps({"step": 40}))
  return folder / "saved.json"


def a_grid(folder: Path) -> Path:
  pictures.save_grid(PIXELS[3], folder / "nfe_002.png")
  return folder / "nfe_002.png"


def opened(spec: str) -> None:
  source = open_source(spec)
  images(source)
  _ = source.num_classes


# the file that is broken, and what reads it
READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
  "config.json, model": (a_run, lambda file: model_of(run.read_config(file.parent) or {}, {})),
  "config.json, train": (a_run, lambda file: resumed(file.parent)),
  "model.json": (lambda folder: a_model(folder, "model.json"), lambda file: load_model(file.parent)),
  "safetensors": (
    lambda folder: a_model(folder, "weights.safetensors"),
    lambda file: load_model(file.parent),
  ),
  "evaluations.jsonl": (some_records, records.read),
  "metrics.jsonl": (some_metrics, lambda file: lines.drop_after(file, 2)),
  "sigmas.json": (some_sigmas, lambda file: run.read_sigmas(file.parent)),
  "features.json": (features, lambda file: load_classifier(file.parent)),
  "zip": (a_zip, lambda file: opened(f"zip:{file}")),
  "dataset.json": (a_described_folder, lambda file: opened(f"folder:{file.parent}")),
  "extra": (
    lambda folder: a_step(folder, "extra/metadata"),
    lambda file: step_folder.read_extra(file.parents[1]),
  ),
  "_METADATA": (
    lambda folder: a_step(folder, "averages/_METADATA"),
    lambda file: step_folder.averages(file.parents[1]),
  ),
  "sha256.json": (lambda folder: a_step(folder, "sha256.json"), lambda file: unsealed(file.parent)),
  "saved.json": (saved, lambda file: run.last_saved(file.parent)),
  "snapshot": (a_snapshot, lambda file: combined(file.parents[1])),
  "grid": (a_grid, lambda file: pictures.corner_of_grid(file, 2)),
  "lmdb": (an_lmdb, lambda file: opened(f"lmdb:{file.parent}")),
  "npz": (an_npz, lambda file: opened(f"npz:{file}")),
  "mean.npy": (lambda folder: latents(folder, "mean.npy"), lambda file: opened(f"latents:{file.parent}")),
  "stats.json": (lambda folder: latents(folder, "stats.json"), lambda file: opened(f"latents:{file.parent}")),
}
QUICK = {
  "snapshot": 40, "grid": 40, "lmdb": 80, "model.json": 25, "safetensors": 25,
  "config.json, model": 60, "config.json, train": 40,
  "extra": 50, "_METADATA": 50, "sha256.json": 50, "saved.json": 50,
}  # fmt: skip


def fuzz(name: str, folder: Path, cases: int, seed: int) -> None:
  make, read = READERS[name]
  file = make(folder)
  whole, chance = file.read_bytes(), random.Random(f"{name} {seed}")
  read(file)
  for _ in range(cases):
    data = broken(whole, chance)
    file.write_bytes(data)
    try:
      read(file)
    except UserError as error:
      assert str(error).isprintable() and len(str(error)) < 2000
    except (*DAMAGE, MemoryError, OSError, RuntimeError) as error:
      raise AssertionError(f"{name}: {type(error).__name__} of {data[:2000]!r}") from error


@pytest.mark.parametrize("name", READERS)
def test_some_broken_files(name, tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  fuzz(name, tmp_path, QUICK.get(name, 150), seed=0)


def test_an_lmdb_file_of_many_entries_for_few_bytes(tmp_path):
  """Entries may point to one value: what is read is bounded by the file."""
  values = [png(PIXELS[3][0])] * 2
  (tmp_path / "data.mdb").write_bytes(lmdb_bytes(values, 1024))
  assert len(images(open_source(f"lmdb:{tmp_path}"))) == 2
  (tmp_path / "data.mdb").write_bytes(lmdb_bytes(values, 1024, shared=20))
  with pytest.raises(UserError, match="share their bytes"):
    open_source(f"lmdb:{tmp_path}")


def test_broken_lmdb_files_take_little_memory_and_time(tmp_path):
  file, chance = an_lmdb(tmp_path), random.Random(5)
  whole = file.read_bytes()
  for _ in range(60):
    file.write_bytes(altered(whole, chance))
    tracemalloc.start()
    began = time.monotonic()
    with contextlib.suppress(UserError):
      opened(f"lmdb:{tmp_path}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 and time.monotonic() - began < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_broken_files(name, tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  fuzz(name, tmp_path, 20 * QUICK.get(name, 150), seed=1)


@pytest.mark.slow
def test_many_broken_descriptions_of_a_prepared_set(tmp_path):
  spec, chance = write_tfds(tmp_path / "set", PIXELS[3]), random.Random(2)
  for file in sorted((tmp_path / "set" / "own" / "1.0.0").glob("*.json")):
    whole = file.read_bytes()
    for _ in range(60):
      file.write_bytes(broken(whole, chance))
      try:
        opened(spec)
      except UserError as error:
        assert str(error).isprintable()
    file.write_bytes(whole)
