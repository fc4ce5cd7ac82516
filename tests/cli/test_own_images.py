"""A folder of anybody's photos, from `train` to `sample --label=cat`: one run, and all that is said of it."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from cm_jax import cli
from cm_jax.assembly import load_model
from cm_jax.data.sources import open_source
from cm_jax.storage import weights

CLASSES = ("10", "cat", "ship")
CONFIG = """
from cm_jax.config import default
def get_config():
  config = default()
  config.batch_size = 16
  config.network = {"name": "toy", "width": 4}
  config.data.update({"crop": "center", "resolution": 8, "alpha": "black", "conditional": True})
  config.optimizer.warmup_images = 0
  config.averages = {"ema": {"name": "constant", "mu": 0.9}}
  config.run.num_steps, config.run.checkpoint_every, config.run.num_samples = 2, 2, 0
  return config
"""
rng = np.random.default_rng(2)


def photo(index):
  pixels = rng.integers(0, 256, (9 + index, 30 - 2 * index, 4), dtype=np.uint8)
  buffer, exif = io.BytesIO(), Image.Exif()
  exif[274] = 8
  if index % 3 == 0:
    Image.fromarray(pixels[..., :3]).save(buffer, "WEBP")
  elif index % 3 == 1:
    Image.fromarray(pixels).save(buffer, "PNG")
  else:
    Image.fromarray(pixels[..., :3]).save(buffer, "JPEG", exif=exif)
  return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run on a zip that Windows made; returns its folder and what was printed."""
  place = tmp_path_factory.mktemp("own")
  (place / "tiny.py").write_text(CONFIG)
  with zipfile.ZipFile(place / "photos.zip", "w") as archive:
    for index in range(9):
      entry = zipfile.ZipInfo("x")
      entry.filename = f"photos\\{CLASSES[index % 3]}\\{index}.dat".replace(
        "dat", ("webp", "png", "jpg")[index % 3]
      )
      archive.writestr(entry, photo(index))
    archive.writestr("photos/notes.txt", "nothing")
  source = f"--config.data.source=zip:{place / 'photos.zip'}"
  assert (
    cli.run(["train", f"--config={place / 'tiny.py'}", source, f"--workdir={place / 'run'}", "--noprogress"])
    == 0
  )
  return place


@pytest.mark.slow
def test_what_is_found_is_said_and_the_names_are_kept(run, capsys):
  command = ["train", f"--workdir={run / 'run'}", "--noprogress", "--config.run.num_steps=3"]
  assert cli.run(command) == 0  # goes on: the classes are the same
  printed = capsys.readouterr().out
  for line in (
    ", 9 images of 8x8x3, cropped to 8 pixels (center), 3 classes as labels",
    "3 classes: 0 10, 1 cat, 2 ship",
    "1 file left out, not of a kind that is read: 1 .txt",
    "3 turned as their EXIF data asks",
    "3 with an alpha channel: over black",
  ):
    assert f"{line}\n" in printed
  assert json.loads((run / "run" / "config.json").read_text())["data"]["class_names"] == list(CLASSES)
  model = load_model(run / "run")
  assert model.class_names == CLASSES
  info = {**weights.info_of(model), "source_sha256": "", "licence": "yours"}
  weights.save_weights(run / "weights", {"net": model.params["net"]}, info)
  assert load_model(run / "weights").class_names == CLASSES


@pytest.mark.slow
def test_a_class_by_its_name(run, capsys):
  for label, number in (("ship", 2), ("10", 0), ("1", 1)):
    out = run / f"{label}.zip"
    assert (
      cli.run(
        ["sample", f"--workdir={run / 'run'}", "--num_steps=1", "--num=2", f"--label={label}", f"--out={out}"]
      )
      == 0
    )
    source = open_source(f"zip:{out}")
    assert source.labels.tolist() == [number] * 2 and source.class_names == CLASSES
  capsys.readouterr()
  for label, words in (
    ("cats", "--label = cats: expected 0 to 2; or 'cat' (did you mean it?)"),
    ("3", "--label = 3: expected 0 to 2; or"),
  ):
    assert (
      cli.run(
        ["sample", f"--workdir={run / 'run'}", "--num_steps=1", f"--label={label}", f"--out={run / 'no.zip'}"]
      )
      == 2
    )
    assert words in capsys.readouterr().err
  assert load_model(run / "run").sample(1, num_steps=1, label="cat").shape == (1, 8, 8, 3)


@pytest.mark.slow
def test_a_test_set_without_a_class_goes_by_the_names(run, capsys):
  test = run / "test"
  pixels = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
  for index, name in enumerate(("ship", "cat", "ship", "cat")):
    (test / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[index]).save(test / name / f"{index}.png")
  np.savez(run / "right.npz", pixels[[1, 3, 0, 2]], np.array([1, 1, 2, 2]))
  found = []
  for source in (f"folder:{test}", f"npz:{run / 'right.npz'}"):
    assert (
      cli.run(["likelihood", f"--workdir={run / 'run'}", f"--source={source}", "--rtol=0.1", "--atol=0.1"])
      == 0
    )
    printed = capsys.readouterr()
    found.append(printed.out.split()[0])
    assert "classes go by their n" in printed.err
  assert found[0] == found[1]
  (test / "cat").rename(test / "dog")
  assert cli.run(["likelihood", f"--workdir={run / 'run'}", f"--source=folder:{test}"]) == 2
  assert "such as dog: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("crop=middle", "config.data.crop = middle: expected one of"),
    ("resolution=-1", "config.data.resolution = -1: expected 1 to 4096"),
    ("resolution=0", "config.data.resolution = 0: expected the side of the squares"),
    ("alpha=red", "config.data.alpha = red: expected one of: black, white"),
    ("alpha=", "an image with transparent parts: expected alpha = white or black"),
    (
      "class_names=('a','b','c')",
      "config.data.class_names = ('a', 'b', 'c'): expected ('10', 'cat', 'ship')",
    ),
  ],
)
def test_bad_values_are_one_line(run, capsys, flag, words):
  source = f"--config.data.source=zip:{run / 'photos.zip'}"
  out = run / "other"
  assert (
    cli.run(["train", f"--config={run / 'tiny.py'}", source, f"--workdir={out}", f"--config.data.{flag}"])
    == 2
  )
  said = capsys.readouterr().err
  assert words in said and said.count("\n") == 1 and not out.exists()
