"""Latents, the user's own code, corrupt images left out, fingerprints that are remembered."""

import json
import os
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from cm_jax.assembly import build
from cm_jax.data.pipeline import FromSource, InMemory, Pipeline, rows_of
from cm_jax.data.sources import images, labels, open_source
from cm_jax.data.sources.threads import in_order
from cm_jax.data.sources.views import Subset
from cm_jax.errors import UserError
from cm_jax.training import loop
from tests import tiny
from tests.data.test_sources import CLASSES, PIXELS, png, write_folder, write_tfds, write_zip

rng = np.random.default_rng(1)
MEAN = rng.normal(size=(6, 4, 4, 5)).astype(np.float16)
STD = rng.uniform(0.1, 0.5, size=MEAN.shape).astype(np.float16)
STATS = {"shift": [0.5, 0, 0, 0, -1], "scale": [2.0, 1, 1, 1, 0.25]}


def write_latents(path, **parts):
  path.mkdir(parents=True, exist_ok=True)
  for name, value in {"mean": MEAN, "std": STD, "label": CLASSES, "stats": STATS, **parts}.items():
    if isinstance(value, dict):
      (path / f"{name}.json").write_text(json.dumps(value))
    elif value is not None:
      np.save(path / f"{name}.npy", value)
  return f"latents:{path}"


def test_latents_are_normalised_and_mapped_not_read(tmp_path):
  source = open_source(write_latents(tmp_path))
  assert len(source) == 6 and source.num_classes == 3 and labels(source).tolist() == CLASSES.tolist()
  shift, scale = (np.array(STATS[key], np.float32) for key in ("shift", "scale"))
  item = source[4]
  np.testing.assert_allclose(item["image"], (MEAN[4].astype(np.float32) - shift) * scale, rtol=1e-6)
  np.testing.assert_allclose(item["std"], STD[4].astype(np.float32) * scale, rtol=1e-6)
  assert item["image"].dtype == item["std"].dtype == np.float32 and item["label"] == 2
  assert isinstance(source._arrays["image"], np.memmap)
  for rows in (rows_of(source, 1.0), rows_of(source, 0.0)):
    assert set(rows.take(np.arange(2))) == {"image", "std", "label"}
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again[3]["image"], source[3]["image"])


def test_latents_may_lack_all_but_the_mean(tmp_path):
  source = open_source(write_latents(tmp_path, std=None, label=None, stats=None))
  assert source.num_classes == 0 and source[0].keys() == {"image", "label"}
  np.testing.assert_array_equal(source[2]["image"], MEAN[2].astype(np.float32))


def test_the_fingerprint_of_latents_follows_everything_that_matters(tmp_path):
  other = MEAN.copy()
  other[5, 3, 3, 4] += 1
  changes = [
    {},
    {"mean": other},
    {"std": 2 * STD},
    {"label": CLASSES[::-1].copy()},
    {"stats": {**STATS, "scale": [1.0] * 5}},
    {"std": None},
  ]
  prints = [
    open_source(write_latents(tmp_path / str(i), **change)).fingerprint for i, change in enumerate(changes)
  ]
  assert len(set(prints)) == len(changes)
  assert open_source(write_latents(tmp_path / "again")).fingerprint == prints[0]


@pytest.mark.parametrize(
  ("parts", "words"),
  [
    ({"mean": None}, "mean.npy"),
    ({"mean": MEAN[0]}, "mean.npy"),
    ({"mean": (10 * MEAN).astype(np.int32)}, "mean.npy"),
    ({"std": STD[:5]}, "std.npy"),
    ({"label": CLASSES[:5]}, "label.npy"),
    ({"label": CLASSES - 1}, "label.npy"),
    ({"stats": {"shift": [0] * 5}}, "stats.json"),
    ({"stats": {"shift": [0] * 4, "scale": [1] * 4}}, "stats.json"),
    ({"stats": {"shift": [0] * 5, "scale": [0] * 5}}, "stats.json"),
    ({"mean": np.array([{}], object)}, "mean.npy"),
  ],
)
def test_bad_latents(tmp_path, parts, words):
  with pytest.raises(UserError, match=words):
    open_source(write_latents(tmp_path, **parts))


@pytest.mark.slow
def test_a_latent_is_drawn_anew_every_step_with_the_posteriors_mean_and_deviation(tmp_path):
  config = tiny.config(tiny.CT, num_steps=2)
  config.data.source = write_latents(tmp_path / "set", mean=MEAN[..., :4], std=STD[..., :4], stats=None)
  experiment = build(config)
  assert experiment.method.image_shape == (4, 4, 4)
  rows = np.zeros(4000, np.int64)
  batch = InMemory(
    {key: np.stack([experiment.source[i][key] for i in range(6)]) for key in ("image", "std", "label")}
  ).take(rows)
  prepare = jax.jit(experiment.method.preprocess)
  first, second = (np.asarray(prepare(batch, jax.random.key(seed))["image"]) for seed in (0, 1))
  assert (first != second).mean() > 0.99
  np.testing.assert_allclose(first.mean(0), batch["image"][0], atol=5 * 0.5 / np.sqrt(4000))
  np.testing.assert_allclose(first.std(0), batch["std"][0], atol=5 * 0.5 / np.sqrt(8000))
  params = loop.train(experiment, tmp_path / "run", progress=False).params
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


class Own:
  """What a user writes."""

  num_classes, fingerprint = 10, "own"

  def __len__(self):
    return 6

  def __getitem__(self, index):
    return {"image": PIXELS[1][index], "label": int(CLASSES[index])}


def own():
  return Own()


def not_a_set():
  return [1, 2]


def wrong_items():
  source = Own()
  source.__class__ = type(
    "Wrong", (Own,), {"__getitem__": lambda self, index: {"image": np.zeros((2, 2)), "label": 0}}
  )
  return source


def test_a_users_function_is_a_source():
  source = open_source("python:tests.data.test_more_sources:own")
  np.testing.assert_array_equal(images(source), PIXELS[1])
  np.testing.assert_array_equal(labels(source), CLASSES)


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    ("python:", "python:MODULE:FUNCTION"),
    ("python:no.such.module:f", "No module named"),
    ("python:tests.data.test_more_sources:nothing", "no attribute"),
    ("python:tests.data.test_more_sources:CLASSES", "a function"),
    ("python:tests.data.test_more_sources:not_a_set", "num_classes, fingerprint"),
    ("python:tests.data.test_more_sources:wrong_items", "uint8"),
  ],
)
def test_bad_python_sources(spec, words):
  with pytest.raises(UserError, match=words):
    open_source(spec)


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_corrupt_images_are_left_out_and_counted_if_asked(tmp_path, capsys, write):
  spec = write(tmp_path / "set", PIXELS[3])
  assert not isinstance(open_source(spec, skip_corrupt=True), Subset) and capsys.readouterr().err == ""
  whole = open_source(spec).fingerprint
  if write is write_folder:
    (tmp_path / "set" / "class_1" / "3.png").write_bytes(png(PIXELS[3][3])[:60])
  else:
    data = (tmp_path / "set" / "a.zip").read_bytes()
    start = data.index(png(PIXELS[3][3]))
    (tmp_path / "set" / "a.zip").write_bytes(data[: start + 45] + b"\0\0\0\0" + data[start + 49 :])
  with pytest.raises(UserError, match=r"3\.png"):
    images(open_source(spec))
  kept = open_source(spec, skip_corrupt=True)
  said = capsys.readouterr().err
  assert "1 of 6 images skipped" in said and "3.png" in said
  rows = [0, 1, 2, 4, 5]
  np.testing.assert_array_equal(images(kept), PIXELS[3][rows])
  assert labels(kept).tolist() == CLASSES[rows].tolist() and kept.num_classes == 3 and len(kept) == 5
  assert kept.fingerprint != whole
  alone = open_source(write(tmp_path / "alone", PIXELS[3][rows], CLASSES[rows]))
  assert kept.fingerprint == alone.fingerprint
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(kept))[4]["image"], PIXELS[3][5])


def test_nothing_but_corrupt_images_is_an_error(tmp_path):
  for index in range(3):
    (tmp_path / f"{index}.png").write_bytes(b"no")
  with pytest.raises(UserError, match="3 corrupt images"):
    open_source(f"folder:{tmp_path}", skip_corrupt=True)


def test_a_fingerprint_is_computed_once_until_a_file_changes(tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  spec = write_folder(tmp_path / "set", PIXELS[3])
  first, reads = open_source(spec).fingerprint, []
  monkeypatch.setattr(
    "cm_jax.data.sources.folder.FolderSource.blob", lambda self, index: reads.append(index) or b""
  )
  assert open_source(spec).fingerprint == first and not reads
  file = tmp_path / "set" / "class_0" / "0.png"
  status = file.stat()
  os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
  assert open_source(spec).fingerprint != first and sorted(reads) == list(range(6))


def test_no_cache_folder_is_no_reason_to_stop(tmp_path, monkeypatch):
  spec = write_folder(tmp_path / "set", PIXELS[3])
  expected = open_source(spec).fingerprint
  (tmp_path / "cache").mkdir()
  (tmp_path / "cache").chmod(0o777)
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))
  assert open_source(spec).fingerprint == expected and not list((tmp_path / "cache").iterdir())


def test_the_same_pixels_in_the_same_order_have_the_same_fingerprint_in_any_container(tmp_path):
  np.savez(tmp_path / "a.npz", PIXELS[3], CLASSES)
  specs = [
    write_folder(tmp_path / "folder", PIXELS[3]),
    write_zip(tmp_path / "zip", PIXELS[3]),
    f"npz:{tmp_path / 'a.npz'}",
  ]
  assert len({open_source(spec).fingerprint for spec in specs}) == 1
  for index in range(6):  # another encoder's files
    Image.fromarray(PIXELS[3][index]).save(
      tmp_path / "folder" / f"class_{CLASSES[index]}" / f"{index}.png", compress_level=0
    )
  assert open_source(specs[0]).fingerprint == open_source(specs[1]).fingerprint


def test_in_order_passes_an_error_on_and_stops():
  seen = []

  def function(item):
    seen.append(item)
    if item == 700:
      raise UserError("x", item, "y")
    return item

  with pytest.raises(UserError):
    list(in_order(function, range(100_000)))
  assert len(seen) < 50_000


@pytest.mark.slow
def test_a_set_too_large_for_ram_trains_the_same(tmp_path):
  """Streamed by worker processes or held in RAM: the same parameters, bit for bit."""
  spec = write_folder(
    tmp_path / "set", rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 4
  )
  results = []
  for ram_gb, workers in ((1.0, 0), (0.0, 2), (0.0, 0)):
    config = tiny.config(tiny.CT, num_steps=5)
    config.data.source = spec
    config.run.ram_gb, config.run.data_workers = ram_gb, workers
    state = loop.train(build(config), tmp_path / f"run_{ram_gb}_{workers}", progress=False)
    results.append(jax.tree.leaves(jax.tree.map(np.asarray, state.params)))
  for other in results[1:]:
    for ours, theirs in zip(results[0], other, strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_streamed_rows_are_those_of_ram(tmp_path):
  source = open_source(write_zip(tmp_path / "set", PIXELS[3]))
  inside, outside = Pipeline(rows_of(source, 1.0), 4, 0), Pipeline(FromSource(source), 4, 0)
  for step in range(5):
    for name in ("image", "label"):
      np.testing.assert_array_equal(inside.batch(step)[name], outside.batch(step)[name])


def test_a_tfds_set_has_splits_slices_and_workers(tmp_path):
  spec = write_tfds(tmp_path, PIXELS[3])
  np.testing.assert_array_equal(images(open_source(spec.replace(":train:", ":train[2:5]:"))), PIXELS[3][2:5])
  with pytest.raises(UserError, match="one of the splits train"):
    open_source(spec.replace(":train:", ":test:"))
  again = pickle.loads(pickle.dumps(open_source(spec)))
  np.testing.assert_array_equal(again[4]["image"], PIXELS[3][4])
  assert open_source(spec).fingerprint == open_source(write_zip(tmp_path / "zip", PIXELS[3])).fingerprint


def test_a_damaged_tfds_set_is_named(tmp_path):
  spec = write_tfds(tmp_path, PIXELS[3])
  (file,) = tmp_path.rglob("*.array_record*")
  data = bytearray(file.read_bytes())
  middle = data.index(b"IDAT") + 20 if b"IDAT" in data else len(data) // 2
  data[middle] ^= 255
  file.write_bytes(data)
  with pytest.raises(UserError, match="tfds:own:train"):
    images(open_source(spec))
  (tmp_path / "own" / "1.0.0" / "dataset_info.json").unlink()
  with pytest.raises(UserError, match="a whole prepared set"):
    open_source(spec)
