"""Every kind of source gives back the images it was written from, and refuses what it cannot read."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from cm_jax.data.prepare.writers import own_info, write_array_record
from cm_jax.data.sources import SOURCES, images, labels, open_source, validate_source
from cm_jax.errors import UserError

rng = np.random.default_rng(0)
PIXELS = {channels: rng.integers(0, 256, (6, 5, 4, channels), dtype=np.uint8) for channels in (1, 3)}
CLASSES = np.array([0, 0, 1, 1, 2, 2], np.int32)


def png(pixels, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", **options)
  return buffer.getvalue()


def write_folder(path, pixels, classes=CLASSES):
  for index, image in enumerate(pixels):
    file = path / (f"class_{classes[index]}" if classes is not None else "") / f"{index}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(image))
  return f"folder:{path}"


def write_npz(path, pixels, classes=CLASSES):
  path.mkdir(parents=True)
  np.savez_compressed(path / "a.npz", pixels, *([] if classes is None else [classes]))
  return f"npz:{path / 'a.npz'}"


def write_zip(path, pixels, classes=CLASSES):
  path.mkdir(parents=True)
  names = [f"00000/img{index:08d}.png" for index in range(len(pixels))]
  with zipfile.ZipFile(path / "a.zip", "w") as file:
    for name, image in zip(names, pixels, strict=True):
      file.writestr(name, png(image))
    pairs = (
      None if classes is None else [[name, int(label)] for name, label in zip(names, classes, strict=True)]
    )
    file.writestr("dataset.json", json.dumps({"labels": pairs}))
  return f"zip:{path / 'a.zip'}"


def write_tfds(path, pixels, classes=CLASSES):
  count = 0 if classes is None else int(max(classes)) + 1
  info = own_info("own", path, pixels.shape[1:], count, "For a test.")
  keys = ("image", "label") if count else ("image",)
  labels_or_none = [None] * len(pixels) if classes is None else map(int, classes)
  examples = (
    dict(zip(keys, (png(image), label), strict=False))
    for image, label in zip(pixels, labels_or_none, strict=True)
  )
  write_array_record(info, {"train": examples})
  return f"tfds:own:train:{path}"


WRITERS = {"folder": write_folder, "npz": write_npz, "tfds": write_tfds, "zip": write_zip}


def test_every_file_source_is_tested():
  """The others have tests of their own in test_more_sources.py."""
  assert set(WRITERS) == set(SOURCES) - {"digits", "latents", "lmdb", "python"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scheme", WRITERS)
def test_gives_back_what_was_written(tmp_path, scheme, channels):
  spec = WRITERS[scheme](tmp_path / "set", PIXELS[channels])
  validate_source(spec)
  source = open_source(spec)
  assert len(source) == 6 and source.num_classes == 3
  np.testing.assert_array_equal(images(source), PIXELS[channels])
  np.testing.assert_array_equal(labels(source), CLASSES)
  assert images(source).dtype == np.uint8 and labels(source).dtype == np.int32
  assert isinstance(source[3]["label"], int) and source[3]["label"] == 1


@pytest.mark.parametrize("scheme", WRITERS)
def test_unlabelled(tmp_path, scheme):
  source = open_source(WRITERS[scheme](tmp_path / "set", PIXELS[3], None))
  assert source.num_classes == 0 and set(labels(source).tolist()) == {-1} and source[0]["label"] == -1


@pytest.mark.parametrize("scheme", WRITERS)
def test_fingerprint_follows_the_content(tmp_path, scheme):
  def of(name, pixels, classes):
    return open_source(WRITERS[scheme](tmp_path / name, pixels, classes)).fingerprint

  one_pixel, relabelled = PIXELS[3].copy(), CLASSES.copy()
  one_pixel[5, 4, 3, 2] ^= 1
  relabelled[1] = 1
  first = of("first", PIXELS[3], CLASSES)
  assert len(first) == 64 and int(first, 16)
  assert of("elsewhere", PIXELS[3], CLASSES) == first
  others = [
    of("pixel", one_pixel, CLASSES),
    of("fewer", PIXELS[3][:5], CLASSES[:5]),
    of("unlabelled", PIXELS[3], None),
  ]
  others.append(of("relabelled", PIXELS[3], relabelled))
  assert len({first, *others}) == 5


def test_npz_fingerprint_knows_the_shape(tmp_path):
  specs = [
    write_npz(tmp_path / str(shape), PIXELS[3].reshape(shape)) for shape in ((6, 5, 4, 3), (6, 4, 5, 3))
  ]
  assert len({open_source(spec).fingerprint for spec in specs}) == 2


def test_digits():
  everything, train, test = (open_source(f"digits{split}") for split in ("", ":train", ":test"))
  assert (len(everything), len(train), len(test)) == (1797, 1437, 360)
  assert len({source.fingerprint for source in (everything, train, test)}) == 3
  assert open_source("digits:train").fingerprint == train.fingerprint
  pixels = images(everything)
  assert (
    pixels.shape == (1797, 8, 8, 1)
    and pixels.min() == 0
    and pixels.max() == 255
    and len(np.unique(pixels)) == 17
  )
  for source in (train, test):
    share = np.bincount(labels(source)) / np.bincount(labels(everything))
    assert np.ptp(share) < 0.02
  together = np.sort(np.concatenate([images(train), images(test)]).reshape(1797, -1).view("V64").ravel())
  np.testing.assert_array_equal(together, np.sort(pixels.reshape(1797, -1).view("V64").ravel()))


def test_folder_reads_jpeg_palette_and_dataset_json(tmp_path):
  grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
  Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "a.jpg", quality=95)
  palette = Image.fromarray(grey).convert("RGB").quantize(16)
  palette.save(tmp_path / "b.PNG")
  (tmp_path / ".hidden.png").write_bytes(b"not an image")
  (tmp_path / "notes.txt").write_text("not an image")
  (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["b.PNG", 4], ["a.jpg", 1]]}))
  source = open_source(f"folder:{tmp_path}")
  np.testing.assert_array_equal(images(source)[1], np.asarray(palette.convert("RGB")))
  assert np.abs(images(source)[0].astype(int) - grey[:, :, None]).max() < 4
  assert labels(source).tolist() == [1, 4] and source.num_classes == 5


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    ("digit", "'digits' (did you mean it?)"),
    ("", "one of: digits, folder, latents, lmdb, npz, python, tfds, zip"),
    ("digits:trian", "'train' (did you mean it?)"),
    ("folder:/no/such/place", "existing folder"),
    ("folder", "existing folder"),
    ("npz:/no/such.npz", "existing file"),
    ("zip:/", "existing file"),
    ("tfds:", "tfds:NAME"),
    ("tfds:../own", "tfds:NAME"),
    ("tfds:own:train:/no/such/place", "a set prepared in /no/such/place/own"),
    ("latents:/no/such/place", "existing folder"),
  ],
)
def test_validate_refuses(spec, words):
  for function in (validate_source, open_source):
    with pytest.raises(UserError) as error:
      function(spec)
    assert error.value.field == "source" and words in str(error.value)


def damage(data, how):
  if how == "truncated":
    return data[: len(data) // 2]
  if how == "flipped":
    middle = data.index(b"IDAT") + 20
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
  return b"" if how == "empty" else b"GIF89a, or anything else"


def odd_image(kind):
  grey = np.arange(20, dtype=np.uint8).reshape(5, 4)
  image = {
    "16-bit grey": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
    "32-bit": lambda: Image.fromarray(grey.astype(np.float32)),
    "alpha": lambda: Image.fromarray(np.stack([grey] * 4, -1)),
    "mixed channels": lambda: Image.fromarray(grey),
    "mixed sizes": lambda: Image.fromarray(np.stack([grey.T] * 3, -1)),
  }[kind]()
  buffer = io.BytesIO()
  image.save(buffer, "TIFF" if kind == "32-bit" else "PNG")
  return buffer.getvalue()


BAD_IMAGES = {
  **{how: damage(png(PIXELS[3][0]), how) for how in ("truncated", "flipped", "empty", "not an image")},
  **{kind: odd_image(kind) for kind in ("16-bit grey", "32-bit", "alpha", "mixed channels", "mixed sizes")},
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("scheme", ["folder", "zip"])
def test_bad_image_is_named(tmp_path, scheme, kind):
  if scheme == "folder":
    spec, name = write_folder(tmp_path, PIXELS[3], None), "3.png"
    (tmp_path / name).write_bytes(BAD_IMAGES[kind])
  else:
    name = "3.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
      for index, image in enumerate(PIXELS[3]):
        file.writestr(f"{index}.png", BAD_IMAGES[kind] if index == 3 else png(image))
    spec = f"zip:{tmp_path / 'a.zip'}"
  source = open_source(spec)
  with pytest.raises(UserError) as error:
    images(source)
  assert error.value.field.endswith(name) and str(tmp_path) in error.value.field
  assert "\n" not in str(error.value)


def test_truncated_jpeg(tmp_path):
  noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
  Image.fromarray(noise).save(tmp_path / "a.jpg")
  data = (tmp_path / "a.jpg").read_bytes()
  (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
  with pytest.raises(UserError, match=r"a\.jpg.*truncated"):
    images(open_source(f"folder:{tmp_path}"))


@pytest.mark.parametrize("layout", ["empty", "beside class folders", "too deep"])
def test_bad_folder(tmp_path, layout):
  if layout != "empty":
    write_folder(tmp_path if layout == "beside class folders" else tmp_path / "train", PIXELS[1])
    (tmp_path / "odd.png").write_bytes(png(PIXELS[1][0]))
  if layout == "too deep":
    (tmp_path / "odd.png").unlink()
  with pytest.raises(UserError, match="holds images" if layout == "empty" else "class folders"):
    open_source(f"folder:{tmp_path}")


BAD_LABELS = {
  "missing one": ({"labels": [["0.png", 0]]}, "no label for 1.png"),
  "one too many": ({"labels": [["0.png", 0], ["1.png", 0], ["2.png", 0]]}, "missing image 2.png"),
  "twice": ({"labels": [["0.png", 0], ["1.png", 0], ["1.png", 1]]}, "labelled twice"),
  "negative": ({"labels": [["0.png", 0], ["1.png", -1]]}, "label -1 of 1.png"),
  "float": ({"labels": [["0.png", 0], ["1.png", 0.5]]}, "label 0.5 of 1.png"),
  "no labels": ({"classes": []}, "KeyError"),
  "a list": ([1, 2], "list"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
@pytest.mark.parametrize("scheme", ["folder", "zip"])
def test_labels_that_do_not_match(tmp_path, scheme, case):
  described, words = BAD_LABELS[case]
  if scheme == "folder":
    spec = write_folder(tmp_path, PIXELS[3][:2], None)
    (tmp_path / "dataset.json").write_text(json.dumps(described))
  else:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
      for index in range(2):
        file.writestr(f"{index}.png", png(PIXELS[3][index]))
      file.writestr("dataset.json", json.dumps(described))
    spec = f"zip:{tmp_path / 'a.zip'}"
  with pytest.raises(UserError) as error:
    open_source(spec)
  assert error.value.field.endswith("dataset.json") and words in str(error.value)


BAD_NPZ = {
  "other key": {"images": PIXELS[3]},
  "float": {"arr_0": PIXELS[3] / 255},
  "16-bit": {"arr_0": PIXELS[3].astype(np.uint16)},
  "NCHW": {"arr_0": PIXELS[3].transpose(0, 3, 1, 2)},
  "no images": {"arr_0": PIXELS[3][:0]},
  "too few labels": {"arr_0": PIXELS[3], "arr_1": CLASSES[:5]},
  "one-hot labels": {"arr_0": PIXELS[3], "labels": np.eye(6)},
  "negative labels": {"arr_0": PIXELS[3], "label": CLASSES - 1},
  "pickled": {"arr_0": np.array([{"a": 1}], object)},
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(tmp_path, case):
  np.savez(tmp_path / "a.npz", **BAD_NPZ[case])
  with pytest.raises(UserError, match=r"a\.npz"):
    open_source(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("scheme", ["npz", "zip"])
@pytest.mark.parametrize("how", ["truncated", "not an archive", "empty", "flipped", "lone array"])
def test_bad_archive(tmp_path, scheme, how):
  spec = WRITERS[scheme](tmp_path / "set", PIXELS[3])
  path = tmp_path / "set" / f"a.{scheme}"
  data = path.read_bytes()
  if how == "flipped":
    middle = 150  # inside the first entry's content
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
  elif how == "lone array":
    with open(path, "wb") as file:
      np.save(file, PIXELS[3])
  else:
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "not an archive": b"GIF89a"}[how])
  with pytest.raises(UserError, match=rf"a\.{scheme}"):
    images(open_source(spec))


def test_unreadable_file(tmp_path):
  spec = write_folder(tmp_path, PIXELS[3], None)
  source = open_source(spec)
  (tmp_path / "2.png").unlink()
  with pytest.raises(UserError, match=r"2\.png"):
    images(source)


def test_importing_data_imports_no_dataset_library():
  import subprocess
  import sys

  names = {"sklearn", "PIL", "grain", "tensorflow_datasets"}
  code = f"import sys, cm_jax.data.pipeline; print(sorted({names} & set(sys.modules)))"
  assert (
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    == "[]"
  )


def test_moved_folder_keeps_its_fingerprint(tmp_path):
  before = open_source(write_folder(tmp_path / "a", PIXELS[1])).fingerprint
  shutil.move(tmp_path / "a", tmp_path / "b")
  assert open_source(f"folder:{tmp_path / 'b'}").fingerprint == before
