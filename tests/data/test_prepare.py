"""`data prepare`: what is written is what was read; accidents leave nothing that could be taken for a set."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cm_jax import cli
from cm_jax.data import prepare as prepare_lib
from cm_jax.data.prepare import Prepare, conversion, kept
from cm_jax.data.prepare.cifar import ARCHIVES
from cm_jax.data.sources import images, labels, open_source
from cm_jax.data.sources.archives import NpzSource
from cm_jax.data.sources.crops import CROPS
from cm_jax.errors import UserError
from tests.data.test_cifar import pin, records, write_archive
from tests.data.test_sources import CLASSES, PIXELS, png, write_folder, write_npz, write_zip
from tests.storage.places import disk_of

REPO = Path(__file__).parents[2]


def prepare(source, out, *flags):
  return cli.run(["data", "prepare", f"--source={source}", f"--out={out}", *flags])


def refused(capsys, *arguments):
  """Run what has to fail, and return the one line it says."""
  capsys.readouterr()
  assert cli.run(["data", *arguments]) == 2
  captured = capsys.readouterr()
  assert captured.out == "" and captured.err.count("\n") == 1, captured
  return captured.err


def files(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [CLASSES, None], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("write", [write_folder, write_zip, write_npz])
@pytest.mark.parametrize("form", ["zip", "array_record"])
def test_what_is_written_is_what_was_read(tmp_path, capsys, form, write, classes, channels):
  source = write(tmp_path / "in", PIXELS[channels], classes)
  out = tmp_path / "new" / ("set.zip" if form == "zip" else "set")
  assert prepare(source, out, f"--format={form}", *(["--name=my_set"] if form != "zip" else [])) == 0
  printed = capsys.readouterr().out
  spec = f"zip:{out}" if form == "zip" else f"tfds:my_set:train:{out}"
  written = open_source(spec)
  np.testing.assert_array_equal(images(written), PIXELS[channels])
  expected = np.full(6, -1) if classes is None else classes
  np.testing.assert_array_equal(labels(written), expected)
  assert written.num_classes == (0 if classes is None else 3)
  assert f"{spec}: 6 images of 5x4x{channels}; 0 skipped" in printed
  assert ("no labels" if classes is None else "3 classes, 2 to 2 images each, median 2") in printed
  assert (
    f"fingerprint {written.fingerprint}\n" in printed
    and written.fingerprint == open_source(source).fingerprint
  )
  size = sum(path.stat().st_size for path in ([out] if form == "zip" else out.rglob("*")) if path.is_file())
  assert f"{size:,} bytes" in printed
  assert Image.open(f"{out}.png").size[0] > 100
  assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.png"}


def test_the_zip_is_edms_and_the_same_every_time(tmp_path):
  source = write_folder(tmp_path / "in", PIXELS[3])
  for name in ("a", "b"):
    assert prepare(source, tmp_path / f"{name}.zip") == 0
  assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
  with zipfile.ZipFile(tmp_path / "a.zip") as archive:
    assert archive.namelist() == [*(f"00000/img{i:08d}.png" for i in range(6)), "dataset.json"]
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    pairs = json.loads(archive.read("dataset.json"))["labels"]
    assert pairs == [[f"00000/img{i:08d}.png", int(label)] for i, label in enumerate(CLASSES)]


def test_a_thousand_images_a_folder(tmp_path):
  np.savez(tmp_path / "a.npz", np.arange(1001 * 12, dtype=np.uint32).astype(np.uint8).reshape(1001, 2, 2, 3))
  assert prepare(f"npz:{tmp_path / 'a.npz'}", tmp_path / "a.zip") == 0
  assert zipfile.ZipFile(tmp_path / "a.zip").namelist()[-2:] == ["00001/img00001000.png", "dataset.json"]
  assert (
    open_source(f"zip:{tmp_path / 'a.zip'}").fingerprint
    == open_source(f"npz:{tmp_path / 'a.npz'}").fingerprint
  )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_becomes_the_set_that_tfds_knows(tmp_path, monkeypatch, capsys, name):
  path = write_archive(tmp_path / "a.tar.gz", name)
  pin(monkeypatch, path, name)
  assert prepare(name, tmp_path / "tfds", "--format=array_record", f"--input={path}") == 0
  printed = capsys.readouterr().out
  for split, members in ARCHIVES[name].splits.items():
    classes, pixels = (
      np.concatenate(parts) for parts in zip(*(records(name, file) for file in members), strict=True)
    )
    stock = tfds.data_source(name, split=split, data_dir=tmp_path / "tfds")
    assert len(stock) == len(pixels)
    for index, example in enumerate(stock):
      np.testing.assert_array_equal(example["image"], pixels[index])
      assert example["label"] == classes[index, -1] and example["id"] == f"{split}_{index:05d}".encode()
      assert name == "cifar10" or example["coarse_label"] == classes[index, 0]
    assert f"tfds:{name}:{split}:{tmp_path / 'tfds'}: {len(pixels)} images" in printed
    assert open_source(f"tfds:{name}:{split}:{tmp_path / 'tfds'}").fingerprint in printed
  builder = tfds.builder(name, data_dir=tmp_path / "tfds")
  assert type(builder).__name__ == name.title() and builder.info.features["label"].names[0] == (
    "airplane" if name == "cifar10" else "fine_0"
  )
  assert builder.info.splits["train"].num_examples == 10 * len(ARCHIVES[name].splits["train"])


def test_cifar_becomes_a_zip_of_a_split(tmp_path, monkeypatch, capsys):
  path = write_archive(tmp_path / "a.tar.gz")
  pin(monkeypatch, path)
  assert prepare("cifar10", tmp_path / "test.zip", "--split=test", f"--input={path}") == 0
  assert prepare("cifar10", tmp_path / "train.zip", f"--input={path}", "--crop=adm", "--resolution=16") == 0
  classes, pixels = records("cifar10", "test_batch.bin")
  np.testing.assert_array_equal(images(open_source(f"zip:{tmp_path / 'test.zip'}")), pixels)
  np.testing.assert_array_equal(labels(open_source(f"zip:{tmp_path / 'test.zip'}")), classes[:, 0])
  assert "10 classes, " in capsys.readouterr().out
  train = images(open_source(f"zip:{tmp_path / 'train.zip'}"))
  np.testing.assert_array_equal(train[0], CROPS["adm"](records("cifar10", "data_batch_1.bin")[1][0], 16))
  assert train.shape == (50, 16, 16, 3)


def test_cifar_cropped_gets_a_name_of_its_own(tmp_path, monkeypatch):
  path = write_archive(tmp_path / "a.tar.gz")
  pin(monkeypatch, path)
  flags = [f"--input={path}", "--crop=edm", "--resolution=16", "--format=array_record", "--split=test"]
  assert prepare("cifar10", tmp_path / "tfds", *flags) == 0
  assert tfds.data_source("cifar10_16x16", split="test", data_dir=tmp_path / "tfds")[0]["image"].shape == (
    16,
    16,
    3,
  )


def mixed(path, count=8):
  """Write photographs of many sizes, grey and RGB, JPEG and PNG, in two class folders; returns the pixels."""
  rng, decoded = np.random.default_rng(3), []
  for index in range(count):
    height, width = 20 + 3 * index, 60 - 5 * index
    shape = (height, width) if index % 3 == 2 else (height, width, 3)
    file = path / f"class_{2 * index // count}" / f"{index}.{'jpg' if index % 2 else 'png'}"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file)
    pixels = np.asarray(Image.open(file))
    decoded.append(pixels if pixels.ndim == 3 else pixels[:, :, None])
  return decoded


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("form", ["zip", "array_record"])
def test_any_size_with_a_crop(tmp_path, capsys, crop, form):
  decoded = mixed(tmp_path / "in")
  out = tmp_path / ("a.zip" if form == "zip" else "a")
  flags = [
    f"--crop={crop}",
    "--resolution=24",
    f"--format={form}",
    *(["--name=mixed"] if form != "zip" else []),
  ]
  assert prepare(f"folder:{tmp_path / 'in'}", out, *flags) == 0
  small = sum(min(pixels.shape[:2]) < 24 for pixels in decoded)
  assert (
    small and f"8 images of 24x24x3, {small} of them smaller before; 0 skipped" in capsys.readouterr().out
  )
  written = open_source(f"zip:{out}" if form == "zip" else f"tfds:mixed:train:{out}")
  if crop == "center":  # JPEGs are decoded at half their size where that will do, which differs a little
    assert images(written).shape == (8, 24, 24, 3)
  else:
    np.testing.assert_array_equal(images(written), [CROPS[crop](pixels, 24) for pixels in decoded])
  assert labels(written).tolist() == [0] * 4 + [1] * 4


def test_a_folder_for_tfds_is_a_builder_too(tmp_path):
  assert (
    prepare(
      write_folder(tmp_path / "flowers", PIXELS[3]), tmp_path / "a", "--format=array_record", "--split=test"
    )
    == 0
  )
  source = tfds.builder_from_directory(tmp_path / "a" / "flowers" / "1.0.0").as_data_source("test")
  assert [example["label"] for example in source] == CLASSES.tolist()
  assert tfds.data_source("flowers", split="test", data_dir=tmp_path / "a")[5]["label"] == 2


def test_more_images_than_a_shard_or_a_batch(tmp_path, monkeypatch):
  monkeypatch.setattr("cm_jax.data.prepare.writers.IMAGES_PER_SHARD", 100)
  pixels = np.random.default_rng(0).integers(0, 256, (530, 4, 4, 3), dtype=np.uint8)
  np.savez(tmp_path / "many.npz", pixels, np.arange(530) % 7)
  assert prepare(f"npz:{tmp_path / 'many.npz'}", tmp_path / "a", "--format=array_record") == 0
  np.testing.assert_array_equal(images(open_source(f"tfds:many:train:{tmp_path / 'a'}")), pixels)
  assert len(list((tmp_path / "a").rglob("*.array_record-*"))) == 6


def test_corrupt_images_are_named_or_skipped_with_their_labels(tmp_path, capsys):
  source = write_folder(tmp_path / "in", PIXELS[3])
  (tmp_path / "in" / "class_1" / "3.png").write_bytes(png(PIXELS[3][3])[:60])
  (tmp_path / "in" / "class_2" / "5.png").write_bytes(b"")
  out = tmp_path / "a.zip"
  assert "class_1/3.png = " in refused(capsys, "prepare", f"--source={source}", f"--out={out}")
  assert files(tmp_path) == ["in", *(f"in/{name}" for name in files(tmp_path / "in"))]
  assert prepare(source, out, "--skip-corrupt") == 0
  captured = capsys.readouterr()
  assert "4 images of 5x4x3; 2 skipped" in captured.out and captured.err.count("skipped: ") == 2
  assert "3 classes, 1 to 2 images each, median 1" in captured.out
  rows = [0, 1, 2, 4]
  np.testing.assert_array_equal(images(open_source(f"zip:{out}")), PIXELS[3][rows])
  assert labels(open_source(f"zip:{out}")).tolist() == CLASSES[rows].tolist()


def test_nothing_but_corrupt_images(tmp_path, capsys):
  source = write_folder(tmp_path / "in", PIXELS[3])
  for file in (tmp_path / "in").rglob("*.png"):
    file.write_bytes(b"no")
  for flags in (
    ["--format=zip", f"--out={tmp_path / 'a.zip'}"],
    ["--format=array_record", f"--out={tmp_path / 'a'}", "--name=abc"],
  ):
    assert "6 corrupt images" in refused(capsys, "prepare", f"--source={source}", "--skip-corrupt", *flags)
  assert files(tmp_path) == ["in", *(f"in/{name}" for name in files(tmp_path / "in"))]


def test_transparent_parts_are_refused_unless_something_is_behind_them(tmp_path, capsys):
  source, odd = write_folder(tmp_path / "in", PIXELS[3]), tmp_path / "in" / "class_0" / "1.png"
  Image.new("RGBA", (4, 5), (90, 90, 90, 0)).save(odd)
  for flags in ([], ["--crop=edm", "--resolution=4"]):
    said = refused(capsys, "prepare", f"--source={source}", f"--out={tmp_path / 'a.zip'}", *flags)
    assert f"{odd} = an image with transparent parts: expected alpha = white or black" in said
  for name, flags, value in (
    ("white", ["--alpha=white"], 255),
    ("black", ["--alpha=black", "--crop=edm", "--resolution=4"], 0),
    ("adm", ["--crop=adm", "--resolution=4"], 90),  # as ADM's own code has it
  ):
    assert prepare(source, tmp_path / f"{name}.zip", *flags) == 0
    assert (images(open_source(f"zip:{tmp_path / name}.zip"))[1] == value).all()
    assert "1 with an alpha channel: " in capsys.readouterr().out


BAD = [
  ([], "command data = : expected one of: prepare"),
  (["prepair"], "command data = prepair: expected 'prepare' (did you mean it?)"),
  (["prepare", "more", "--source=digits"], "arguments = more"),
  (["prepare"], "--source = "),
  (["prepare", "--source=digits"], "--out = : expected what to write"),
  (["prepare", "--source=digit", "--out=OUT.zip"], "--source = digit: expected 'digits' (did you mean it?)"),
  (["prepare", "--source=cifar", "--out=OUT.zip"], "--source = cifar: expected 'cifar10' (did you mean it?)"),
  (["prepare", "--source=cifar10:train", "--out=OUT.zip"], "--source = cifar10:train"),
  (["prepare", "--source=latents:IN", "--out=OUT.zip"], "--source = latents:"),
  (["prepare", "--source=digits:tset", "--out=OUT.zip"], "--source = digits:tset"),
  (
    ["prepare", "--source=folder:/no/such/place", "--out=OUT.zip"],
    "--source = folder:/no/such/place: expected folder:PATH of an existing",
  ),
  (["prepare", "--source=folder:EMPTY", "--out=OUT.zip"], "expected a folder that holds images"),
  (["prepare", "--source=folder:MIXED", "--out=OUT.zip"], "class_0/1.jpg = 23x55x3: expected 20x60x3"),
  (
    ["prepare", "--source=folder:IN", "--out=OUT.zip", "--resolution=8"],
    "class_0/0.png = 5x4: expected 8x8, or the crop adm or center or edm",
  ),
  (
    ["prepare", "--source=folder:IN", "--out=OUT.zip", "--resolution=0"],
    "--resolution = 0: expected 1 to 4096",
  ),
  (["prepare", "--source=folder:IN", "--out=OUT.zip", "--resolution=5000"], "--resolution = 5000"),
  (
    ["prepare", "--source=folder:IN", "--out=OUT.zip", "--resolution=big"],
    "--resolution = big: expected an integer",
  ),
  (
    ["prepare", "--source=folder:IN", "--out=OUT.zip", "--crop=adn", "--resolution=8"],
    "--crop = adn: expected 'adm' (did you mean it?)",
  ),
  (["prepare", "--source=folder:IN", "--out=OUT.zip", "--crop=adm"], "--resolution = 0: expected the side"),
  (
    ["prepare", "--source=folder:IN", "--out=OUT.zip", "--format=zipp"],
    "--format = zipp: expected 'zip' (did you mean it?)",
  ),
  (["prepare", "--source=folder:IN", "--out=OUT.zip", "--format=array_record"], "--out = "),
  (["prepare", "--source=folder:IN", "--out=OUT"], "expected a name ending in .zip"),
  (["prepare", "--source=folder:IN", "--out=IN/a.zip"], "expected a place outside"),
  (["prepare", "--source=folder:IN", "--out=IN/class_0/0.png/a.zip"], "--out = "),
  (
    ["prepare", "--source=zip:LABELS.zip", "--out=OUT.zip"],
    "dataset.json = no label for 00000/img00000005.png",
  ),
  (["prepare", "--source=zip:IN/class_0/0.png", "--out=OUT.zip"], "0.png = "),
  (["prepare", "--source=digits", "--out=OUT.zip", "--split=train"], "--split = train: expected only with"),
  (
    ["prepare", "--source=digits", "--out=OUT", "--format=array_record", "--split=val"],
    "--split = val: expected train or test",
  ),
  (
    ["prepare", "--source=cifar10", "--out=OUT", "--format=array_record", "--split=test"],
    "--split = test: expected none here",
  ),
  (["prepare", "--source=cifar10", "--out=OUT", "--format=array_record", "--name=mine"], "--name = mine"),
  (["prepare", "--source=digits", "--out=OUT.zip", "--name=mine"], "--name = mine: expected only with"),
  (["prepare", "--source=digits", "--out=OUT", "--format=array_record", "--name=Mine!"], "--name = Mine!"),
  (
    ["prepare", "--source=digits", "--out=OUT", "--format=array_record", "--name=mnist"],
    "--name = mnist: expected a name that tfds does",
  ),
  (
    ["prepare", "--source=digits", "--out=OUT.zip", "--input=x.tar.gz"],
    "--input = x.tar.gz: expected only with",
  ),
  (
    ["prepare", "--source=cifar10", "--out=OUT.zip", "--input=/no/such.tar.gz"],
    "--input = /no/such.tar.gz: expected an existing file",
  ),
  (["prepare", "--source=cifar10", "--out=OUT.zip", "--input=LABELS.zip"], "sha256 c4a38c50"),
  (
    ["prepare", "--source=digits", "--out=OUT.zip", "--resolutoin=8"],
    "expected '--resolution' (did you mean it?)",
  ),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bad")
  write_folder(folder / "IN", PIXELS[3])
  mixed(folder / "MIXED")
  (folder / "EMPTY").mkdir()
  write_zip(folder / "z", PIXELS[3])
  with zipfile.ZipFile(folder / "z" / "a.zip") as whole, zipfile.ZipFile(folder / "LABELS.zip", "w") as part:
    for name in whole.namelist()[:-1]:
      part.writestr(name, whole.read(name))
    part.writestr(
      "dataset.json", json.dumps({"labels": json.loads(whole.read("dataset.json"))["labels"][:-1]})
    )
  return folder


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(given) for given, _ in BAD])
def test_bad_input_is_one_line_and_changes_nothing(places, capsys, monkeypatch, arguments, words):
  monkeypatch.chdir(places)
  before = files(places)
  assert words in refused(capsys, *arguments)
  assert files(places) == before


def test_what_is_there_is_never_replaced(tmp_path, capsys):
  (tmp_path / "a.zip").write_text("years of work")
  assert "expected a path that does not exist yet" in refused(
    capsys, "prepare", "--source=digits", f"--out={tmp_path / 'a.zip'}"
  )
  os.symlink("/no/such/place", tmp_path / "b.zip")
  assert "expected a path that does not exist yet" in refused(
    capsys, "prepare", "--source=digits", f"--out={tmp_path / 'b.zip'}"
  )
  assert (tmp_path / "a.zip").read_text() == "years of work" and files(tmp_path) == ["a.zip", "b.zip"]


def test_help(capsys):
  for arguments in (["data", "prepare", "--help"], ["data", "--help"]):
    assert cli.run(arguments) == 0
    assert "python -m cm_jax data prepare --source=cifar10" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["zip", "array_record"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys, form):
  out = tmp_path / "deep" / "er" / ("a.zip" if form == "zip" else "a")
  with disk_of(100_000):
    said = refused(
      capsys,
      "prepare",
      "--source=digits",
      f"--out={out}",
      f"--format={form}",
      *(["--name=abc"] if form != "zip" else []),
    )
  assert f"--out = {out}: expected a place that can be written" in said and "File too large" in said
  assert files(tmp_path) == []


@pytest.mark.parametrize(("error", "left"), [(RuntimeError, 0), (KeyboardInterrupt, 300)])
def test_an_error_half_way_leaves_nothing_and_a_stop_what_is_made(tmp_path, monkeypatch, capsys, error, left):
  def stop(images):
    yield from itertools.islice(images, 300)
    raise error

  real, encode = prepare_lib.write_zip, conversion.encode_png
  with monkeypatch.context() as patched:
    patched.setattr(prepare_lib, "write_zip", lambda path, images, names: real(path, stop(images)))
    with pytest.raises(error):
      Prepare("digits", str(tmp_path / "a.zip"))()
  assert {path.name for path in tmp_path.iterdir()} == ({".a.zip.part"} if left else set())
  assert all(path.name == "made" for path in (tmp_path / ".a.zip.part").glob("*"))

  made = []
  monkeypatch.setattr(conversion, "encode_png", lambda pixels: made.append(1) or encode(pixels))
  Prepare("digits", str(tmp_path / "a.zip"))()
  assert len(made) == 1797 - left and (f"{left} images" in capsys.readouterr().err) == (left > 0)
  Prepare("digits", str(tmp_path / "b.zip"))()
  assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
  assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "b.zip", "a.zip.png", "b.zip.png"}


def test_what_is_kept_counts_only_for_the_same_image_and_the_same_crop(tmp_path):
  picture = kept.Image(3, b"png", 1, (4, 4, 1), False, kept.made_of(b"file", 1, "center 4"))
  store = kept.Kept(tmp_path)
  store.add(picture)
  store.write()
  again = kept.Kept(tmp_path)
  assert again.find(3, kept.made_of(b"file", 1, "center 4")) == picture
  others = [(b"other", 1, "center 4"), (b"file", 2, "center 4"), (b"file", 1, "center 8")]
  assert [again.find(3, kept.made_of(*other)) for other in others] == [None] * 3
  (shard,) = tmp_path.iterdir()
  shard.write_bytes(shard.read_bytes()[:-1] + b"x")
  assert len(kept.Kept(tmp_path)) == 0  # a damaged shard is made anew


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_stopped_by_a_signal_the_same_command_goes_on(tmp_path, number, status):
  (tmp_path / "slow_source.py").write_text(SLOW)
  command = [sys.executable, "-m", "cm_jax", "data", "prepare", "--source=python:slow_source:make"]
  command.append(f"--out={tmp_path / 'a.zip'}")
  environment = {**os.environ, "PYTHONPATH": f"{REPO}:{tmp_path}"}
  process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 60
  while not list((tmp_path / ".a.zip.part" / "made").rglob("shard_*")) and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(number)
  assert process.wait(30) == status and not (tmp_path / "a.zip").exists()
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0 and "goes on with" in done.stderr, done.stderr
  assert open_source(f"zip:{tmp_path / 'a.zip'}").fingerprint == open_source("digits").fingerprint


def test_a_writer_that_loses_an_image_is_found_out(tmp_path, monkeypatch):
  real = prepare_lib.write_zip

  def forgetful(path, images, names):
    real(path, list(images)[:-1])

  monkeypatch.setattr(prepare_lib, "write_zip", forgetful)
  with pytest.raises(UserError, match="other labels than were written"):
    Prepare("digits", str(tmp_path / "a.zip"))()
  assert files(tmp_path) == []


SLOW = """
import time
from cm_jax.data.sources.digits import DigitsSource
class Slow(DigitsSource):
  def __getitem__(self, index):
    time.sleep(0.02 if index > 1000 else 0)
    return super().__getitem__(index)
def make():
  return Slow()
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "array_record"])
def test_killed_half_way_it_leaves_nothing_that_opens_and_the_next_run_clears_up(tmp_path, capsys, form):
  (tmp_path / "slow_source.py").write_text(SLOW)
  folder = tmp_path / "out"
  folder.mkdir()
  out = folder / ("a.zip" if form == "zip" else "a")
  flags = [f"--format={form}", *(["--name=abc"] if form != "zip" else [])]
  command = [
    sys.executable,
    "-m",
    "cm_jax",
    "data",
    "prepare",
    "--source=python:slow_source:make",
    f"--out={out}",
    *flags,
  ]
  process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"{REPO}:{tmp_path}"})
  deadline = time.monotonic() + 60
  while (
    process.poll() is None and sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1000
  ):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  assert "expected a place that no other process writes to" in refused(
    capsys, "prepare", "--source=digits", f"--out={out}", *flags
  )
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert {path.name for path in folder.iterdir()} == {f".{out.name}.part", f".{out.name}.lock"}
  with pytest.raises(UserError):
    open_source(
      f"zip:{folder / f'.{out.name}.part' / 'set.zip'}"
      if form == "zip"
      else f"tfds:abc:train:{folder / f'.{out.name}.part'}"
    )
  assert prepare("digits", out, *flags) == 0
  assert {path.name for path in folder.iterdir()} == {out.name, f"{out.name}.png"}
  assert (
    open_source(f"zip:{out}" if form == "zip" else f"tfds:abc:train:{out}").fingerprint
    == open_source("digits").fingerprint
  )


def test_few_images_are_in_memory_at_a_time(tmp_path, monkeypatch):
  """The writer is given images while later ones have not been read."""
  read, seen, real_zip = [], [], prepare_lib.write_zip
  pixels = np.zeros((3000, 2, 2, 3), np.uint8)
  np.savez(tmp_path / "a.npz", pixels)
  item = NpzSource.__getitem__
  monkeypatch.setattr(NpzSource, "__getitem__", lambda self, index: read.append(index) or item(self, index))

  def watched(path, images, names):
    real_zip(path, (seen.append(len(read)) or image for image in images))

  monkeypatch.setattr(prepare_lib, "write_zip", watched)
  Prepare(f"npz:{tmp_path / 'a.npz'}", str(tmp_path / "a.zip"))()
  assert len(seen) == 3000 and max(behind - at for at, behind in enumerate(seen)) < 2000
