"""Samples on their way to a file or folder: the same whatever happened on the way; whole or not there."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from cm_jax.errors import UserError
from cm_jax.storage.samples import SampleStore
from tests.storage.places import disk_of, names, no_room

NUM, SHARD = 20, 8
DRAWN = np.random.default_rng(0).integers(0, 256, (NUM, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(NUM, dtype=np.int32) % 3
OUTS = ("x.npz", "x.zip", "x")
REQUEST = {"seed": 0, "sampler": "heun"}


def store(out, **request) -> SampleStore:
  return SampleStore(out, {**REQUEST, **request}, NUM, SHARD)


def draw(indices):
  """Draw two batches a shard."""
  middle = len(indices) // 2
  return [DRAWN[indices[:middle]], DRAWN[indices[middle:]]]


def the_same_command_draws_what_is_missing(path):
  again = store(path)
  again.begin()
  assert [indices.start for indices in again.missing()] == [8, 16]
  again.collect(draw, again.missing())
  again.finish(LABELS)
  np.testing.assert_array_equal(stored(path)[0], DRAWN)


def make(out, labels=LABELS) -> None:
  samples = store(out)
  samples.begin()
  samples.collect(draw, samples.missing())
  samples.finish(labels)


def stored(out):
  """Return the images and labels of a result."""
  if out.suffix == ".npz":
    with np.load(io.BytesIO(out.read_bytes())) as file:
      return file["arr_0"], file["arr_1"] if "arr_1" in file.files else None
  if out.suffix == ".zip":
    archive = zipfile.ZipFile(io.BytesIO(out.read_bytes()))
    files = {name: archive.read(name) for name in archive.namelist()}
  else:
    files = {name: (out / name).read_bytes() for name in names(out)}
  pairs = json.loads(files.pop("dataset.json"))["labels"]
  pngs = [np.asarray(Image.open(io.BytesIO(files[name]))) for name in sorted(files)]
  return np.stack(pngs), None if pairs is None else np.array([dict(pairs)[name] for name in sorted(files)])


@pytest.mark.parametrize("name", OUTS)
def test_all_samples_and_labels_are_there_and_nothing_else(place, name):
  make(place / "deep" / name)
  images, labels = stored(place / "deep" / name)
  np.testing.assert_array_equal(images, DRAWN)
  np.testing.assert_array_equal(labels, LABELS)
  assert all(path.split("/")[1] == name for path in names(place))
  make(place / "unlabelled" / name, None)
  assert stored(place / "unlabelled" / name)[1] is None


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_run_cut_off_anywhere_goes_on_and_draws_nothing_twice(place, name, stop):
  out, drawn = place / name, []
  first = store(out)
  first.begin()
  first.collect(draw, first.missing()[:stop])
  if name != "x" or place.as_posix().startswith("/"):
    assert not out.exists()

  again = store(out)
  again.begin()
  again.collect(lambda indices: drawn.append(indices.start) or draw(indices), again.missing())
  again.finish(LABELS)
  assert drawn == [0, 8, 16][stop:]
  np.testing.assert_array_equal(stored(out)[0], DRAWN)
  make(place / f"other_{name}")
  if name == "x.npz":  # a zip says when it was written
    assert out.read_bytes() == (place / f"other_{name}").read_bytes()


@pytest.mark.parametrize("name", OUTS)
def test_a_shard_cut_in_half_by_a_kill_is_drawn_again(tmp_path, name):
  first = store(tmp_path / name)
  first.begin()
  first.collect(draw, first.missing()[:1])
  part = tmp_path / f".{name}.part"
  (part / ".shard_000000008.4711.tmp").write_bytes(b"half")
  if name == "x":
    (part / "done" / "00000" / "img00000008.png").write_bytes(b"half")
  the_same_command_draws_what_is_missing(tmp_path / name)
  assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", OUTS)
def test_going_on_with_other_samples_names_the_field(place, name):
  first = store(place / name)
  first.begin()
  first.collect(draw, first.missing()[:1])
  with pytest.raises(
    UserError, match=r"^seed = 1: expected 0, as the interrupted run in .*\(delete it to start over\)"
  ):
    store(place / name, seed=1).begin()


@pytest.mark.parametrize("name", OUTS)
def test_what_is_there_is_not_replaced(place, name):
  make(place / name)
  before = {path: (place / path).read_bytes() for path in names(place)}
  with pytest.raises(UserError, match="^out = .*expected a path that does not exist yet, or an empty folder"):
    store(place / name)
  assert {path: (place / path).read_bytes() for path in names(place)} == before


def test_an_empty_folder_may_be_filled(tmp_path):
  (tmp_path / "x").mkdir()
  make(tmp_path / "x")
  np.testing.assert_array_equal(stored(tmp_path / "x")[0], DRAWN)


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("when", ["begin", "shard", "finish"])
def test_a_full_disk_names_the_result_and_the_run_can_go_on(tmp_path, monkeypatch, name, when):
  out = tmp_path / name
  said = f"^{out} = .*: expected a place that can be written, with room enough"
  samples = store(out)
  if when == "begin":
    with disk_of(10), pytest.raises(UserError, match=said):
      samples.begin()
    assert names(tmp_path) == []
  elif when == "shard":
    samples.begin()
    with disk_of(60), pytest.raises(UserError, match=said):
      samples.collect(draw, samples.missing())
  else:
    samples.begin()
    samples.collect(draw, samples.missing())
    with monkeypatch.context() as patched, pytest.raises(UserError, match=said):
      patched.setattr("os.fsync", no_room)
      samples.finish(LABELS)
  assert not out.exists()
  make(out)
  np.testing.assert_array_equal(stored(out)[0], DRAWN)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_latents_keep_their_numbers(place):
  latents = np.random.default_rng(1).normal(size=(NUM, 4, 4, 4)).astype(np.float32)
  samples = store(place / "x.npz")
  samples.begin()
  samples.collect(lambda indices: [latents[indices]], samples.missing())
  samples.finish(None)
  np.testing.assert_array_equal(stored(place / "x.npz")[0], latents)


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_shard_is_drawn_again(tmp_path, name, damage):
  first = store(tmp_path / name)
  first.begin()
  first.collect(draw, first.missing()[:2])
  part = tmp_path / f".{name}.part"
  shard = part / ("done/00000/img00000011.png" if name == "x" else "shard_000000008")
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 4
  shard.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "emptied": b""}[damage])
  the_same_command_draws_what_is_missing(tmp_path / name)
