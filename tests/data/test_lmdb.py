"""LSUN's archives: an LMDB file that the lmdb package wrote is read as that package reads it."""

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from cm_jax import cli
from cm_jax.data.pipeline import Pipeline, batches, rows_of
from cm_jax.data.sources import Framing, images, open_source
from cm_jax.errors import UserError

# Written by lmdb 0.9.36 in three transactions, one of which deletes an entry: 25 WebP files, one of
# them too large for a leaf. Hash of all values in the order of the keys, and the first key are what that
# package says.
MADE = gzip.decompress((Path(__file__).parent / "lsun.mdb.gz").read_bytes())
VALUES = "8e331c5d01352e649d34fd8342d54ec448e35178cd0f76a4d632ddaa5d10de07"
FIRST = "atapmhydpfgjjcyimgycrkhiholkxpasjoxwckau"


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / "church_val_lmdb"
  path.mkdir()
  (path / "data.mdb").write_bytes(MADE)
  (path / "lock.mdb").write_bytes(bytes(64))
  return path


def test_every_entry_is_read_in_the_order_of_the_keys(folder):
  source = open_source(f"lmdb:{folder}", framing=Framing("center", 16))
  assert len(source) == 25 and source.num_classes == 0
  values = [source.record(index)[0] for index in range(25)]
  assert hashlib.sha256(b"".join(values)).hexdigest() == VALUES
  assert max(map(len, values)) > 4096 and source.where(0) == f"{folder}/data.mdb/{FIRST}"
  assert images(source).shape == (25, 16, 16, 3)
  assert (
    open_source(f"lmdb:{folder / 'data.mdb'}", framing=Framing("center", 16)).fingerprint
    == source.fingerprint
  )


def test_it_travels_to_workers(folder):
  source = open_source(f"lmdb:{folder}", framing=Framing("edm", 8))
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[7]["image"], source[7]["image"])
  ready = Pipeline(rows_of(source, 0.0), 4, 0)
  for made, expected in zip(batches(ready, 0, 2), map(ready.batch, range(2)), strict=True):
    np.testing.assert_array_equal(made["image"], expected["image"])


def test_data_prepare_reads_it(folder, tmp_path, capsys):
  command = ["data", "prepare", f"--source=lmdb:{folder}", "--crop=adm", "--resolution=32"]
  assert cli.run([*command, f"--out={tmp_path / 'a.zip'}"]) == 0
  assert "25 images of 32x32x3" in capsys.readouterr().out


def test_what_is_no_such_file_is_told(folder, tmp_path):
  for spec in (f"lmdb:{tmp_path}", "lmdb:", "lmdb:/no/such/place"):
    with pytest.raises(UserError, match=r"expected lmdb:PATH of an existing folder with data\.mdb"):
      open_source(spec)
  for data in (
    b"",
    MADE[:100],
    MADE[:9000],
    b"GIF89a" * 1000,
    MADE[:16] + bytes(8) + MADE[24:],
    MADE[: 5 * 4096],
  ):
    (folder / "data.mdb").write_bytes(data)
    with pytest.raises(UserError, match=r"data\.mdb = .*: expected an LMDB data file"):
      images(open_source(f"lmdb:{folder}", framing=Framing("edm", 8)))


def test_damage_is_told_and_ends(folder):
  """Bytes changed anywhere in the pages give an error of ours or other images, soon and nothing else."""
  rng = np.random.default_rng(3)
  for _ in range(150):
    data = bytearray(MADE)
    for at in rng.integers(0, len(data), 8):
      page = int(at) // 4096 * 4096
      data[page + int(rng.integers(0, 160))] = int(rng.integers(0, 256))
    (folder / "data.mdb").write_bytes(data)
    try:
      source = open_source(f"lmdb:{folder}")
      for index in range(len(source)):
        source.record(index), source.where(index)
    except UserError as error:
      assert "\n" not in str(error)
