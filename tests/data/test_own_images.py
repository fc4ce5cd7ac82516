"""Images of any kind, as phones, Windows and the web make them: read as they are meant, or told."""

import io
import json
import math
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from cm_jax.data.sources import Framing, class_names, images, labels, open_source, told
from cm_jax.data.sources.classes import Classes, renumbered
from cm_jax.data.sources.decoding import Reading, decode
from cm_jax.errors import UserError
from cm_jax.networks import init_params
from cm_jax.networks.small_unet import SmallUNet
from tests.data.test_sources import PIXELS, png

rng = np.random.default_rng(5)
PHOTO = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(image, format, **options):
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return buffer.getvalue()


def turned_by(orientation):
  exif = Image.Exif()
  exif[274] = orientation
  return {"exif": exif}


SMOOTH = Image.fromarray(PHOTO).resize((32, 24), box=(8, 8, 12, 11))  # JPEG and WebP change it little
KINDS = {
  "a.png": encoded(SMOOTH, "PNG"),
  "b.jpg": encoded(SMOOTH, "JPEG", quality=98),
  "c.webp": encoded(SMOOTH, "WEBP", quality=98),
  "d.bmp": encoded(SMOOTH, "BMP"),
  "e.TIFF": encoded(SMOOTH, "TIFF"),
  "f.gif": encoded(SMOOTH, "GIF", save_all=True, append_images=[Image.new("RGB", (32, 24))]),
  "g.jpeg": encoded(SMOOTH, "PNG"),  # what a web server called it
  "h.png": encoded(SMOOTH.quantize(255), "PNG"),
  "i.png": encoded(SMOOTH.transpose(Image.Transpose.ROTATE_90), "PNG", **turned_by(6)),
  "j.png": encoded(Image.merge("RGBA", (*SMOOTH.split(), Image.new("L", (32, 24), 255))), "PNG"),
}


def write(folder, files):
  for name, data in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return f"folder:{folder}"


def test_every_kind_of_file_is_the_image_it_shows(tmp_path):
  litter = {"Thumbs.db": b"", ".DS_Store": b"", "k.HEIC": b"", "l.heic": b"", "notes.txt": b"", "README": b""}
  source = open_source(write(tmp_path, {**KINDS, **litter}))
  assert len(source) == len(KINDS)
  assert np.abs(images(source).astype(int) - np.asarray(SMOOTH)).mean((1, 2, 3)).max() < 8  # palettes
  for line in (
    "4 files left out, not of a kind that is read: 2 .heic, 1 .txt, 1 without an extension",
    "files: 1 BMP, 1 GIF, 1 JPEG, 5 PNG, 1 TIFF, 1 WEBP",
    "1 turned as their EXIF data asks",
    "1 with an alpha channel: opaque",
    "1 of several frames: the first is kept",
  ):
    assert line in told(source)


def test_printing_inks_and_sixteen_bits():
  cmyk = Image.new("CMYK", (3, 2), (255, 0, 0, 0))
  assert decode(encoded(cmyk, "TIFF"), "x")[0, 0].tolist() == [0, 255, 255]
  assert decode(encoded(cmyk, "JPEG"), "x").shape == (2, 3, 3)
  wide = np.array([[0, 255, 256, 51_200, 65_535]], np.uint16)
  for kind in ("PNG", "TIFF"):
    assert decode(encoded(Image.fromarray(wide), kind), "x").ravel().tolist() == [0, 0, 1, 200, 255]


@pytest.mark.parametrize("grey", [False, True], ids=["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_what_lies_behind_transparent_parts(kind, grey):
  colours = (100,) if grey else (100, 0, 200)
  opacities = np.array([[0, 255, 128]], np.uint8)
  image = np.concatenate([np.full((1, 3, len(colours)), colours, np.uint8), opacities[..., None]], -1)
  options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
  picture = Image.fromarray(image, "LA" if grey else "RGBA")
  data = encoded(picture, kind, **options)
  for alpha, behind in (("white", 255), ("black", 0)):
    made = decode(data, "x", Reading(alpha))
    middle = [round((c * 128 + behind * 127) / 255) for c in colours]
    if kind != "WEBP":  # which has no grey
      assert made.shape[2] == len(colours)
      np.testing.assert_array_equal(made[0], [[behind] * len(colours), list(colours), middle])
    else:
      assert made[0, 0].tolist() == [behind] * 3
  with pytest.raises(UserError, match="x = an image with transparent parts: expected alpha = white"):
    decode(data, "x")
  assert decode(data, "x", Reading("drop"))[0, 0].tolist()[: len(colours)] == list(colours)


def test_a_transparent_colour_is_transparent():
  pixels = np.array([[7, 9]], np.uint8)
  data = encoded(Image.fromarray(pixels), "PNG", transparency=9)
  assert decode(data, "x", Reading("white")).ravel().tolist() == [7, 255]
  palette = Image.fromarray(PHOTO[:2, :2]).quantize(4)
  data = encoded(palette, "GIF", transparency=0)
  seen = decode(data, "x", Reading("black"))
  assert (seen[np.asarray(palette) == 0] == 0).all() and seen.shape == (2, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_phone_says_or_left(orientation):
  from PIL import ImageOps

  data = encoded(Image.fromarray(PHOTO), "JPEG", **turned_by(orientation))
  plain = np.asarray(Image.open(io.BytesIO(data)))
  meant = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  np.testing.assert_array_equal(decode(data, "x"), meant)
  np.testing.assert_array_equal(decode(data, "x", Reading(exif=False)), plain)


def sizes(folder, grey=False):
  """Photos of many sizes, one of them grey among colours unless all are."""
  files = {}
  for index, size in enumerate(((40, 60), (61, 33), (20, 20), (200, 150))):
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    is_grey = grey or index == 1
    files[f"{index}.png"] = png(pixels[..., :1] if is_grey else pixels)
  return write(folder, files)


@pytest.mark.parametrize("crop", ["center", "adm", "edm"])
def test_any_sizes_become_one_and_the_fingerprint_names_how(tmp_path, crop):
  spec = sizes(tmp_path / "colour")
  source = open_source(spec, framing=Framing(crop, 24))
  assert images(source).shape == (4, 24, 24, 3)
  assert "1 smaller than 24 pixels: enlarged" in told(source)
  others = [Framing(crop, 16), *(Framing(name, 24) for name in {"center", "adm", "edm"} - {crop})]
  assert (
    len({open_source(spec, framing=framing).fingerprint for framing in others} | {source.fingerprint}) == 4
  )
  grey = open_source(sizes(tmp_path / "grey", grey=True), framing=Framing(crop, 24))
  assert grey.shape == (24, 24, 1 if crop == "center" else 3)
  assert grey[0]["image"].shape == grey.shape


def test_arrays_are_cropped_too(tmp_path):
  np.savez(tmp_path / "a.npz", PHOTO[None].repeat(3, 0), np.array([0, 1, 1]))
  source = open_source(f"npz:{tmp_path / 'a.npz'}", framing=Framing("center", 8))
  assert images(source).shape == (3, 8, 8, 3) and labels(source).tolist() == [0, 1, 1]
  assert source.fingerprint != open_source(f"npz:{tmp_path / 'a.npz'}").fingerprint
  with pytest.raises(UserError, match="24x32: expected 8x8, or the crop"):
    images(open_source(f"npz:{tmp_path / 'a.npz'}", framing=Framing(resolution=8)))


def test_a_fingerprint_of_before_there_were_crops_is_the_same(tmp_path):
  """Of the images of test_sources, by the code of 7371fc9."""
  spec = write(tmp_path, {f"{index}.png": png(image) for index, image in enumerate(PIXELS[3])})
  from cm_jax.data.sources.fingerprints import fingerprint

  expected = fingerprint("uint8 (5, 4, 3)", [image.tobytes() for image in PIXELS[3]], np.full(6, -1))
  assert open_source(spec).fingerprint == expected
  assert open_source(spec, framing=Framing(alpha="white")).fingerprint == expected


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"crop": "centre", "resolution": 8}, "crop = centre: expected 'center' (did you mean it?)"),
    ({"crop": "edm"}, "resolution = 0: expected the side of the squares that the crop edm makes"),
    ({"crop": "edm", "resolution": 9999}, "resolution = 9999: expected 1 to 4096 pixels"),
    ({"alpha": "grey"}, "alpha = grey: expected one of: black, white"),
    ({"exif": "yes"}, "exif = yes: expected True or False"),
  ],
)
def test_framing_refuses(fields, words):
  with pytest.raises(UserError) as error:
    Framing(**fields)
  assert words in str(error.value)


def write_zip(path, names, described=None, flag_utf8=True):
  with zipfile.ZipFile(path, "w") as archive:
    for index, name in enumerate(names):
      entry = zipfile.ZipInfo("placeholder")
      entry.filename = name  # past what ZipInfo makes of it
      archive.writestr(entry, b"" if name.endswith(("/", ".db", "DS_Store")) else png(PIXELS[3][index % 6]))
    if described is not None:
      archive.writestr(described[0], json.dumps(described[1]))
  return f"zip:{path}"


ZIPS = {
  "Windows": ["cats\\", "cats\\b.png", "cats\\a.png", "ships\\c.png", "ships\\Thumbs.db"],
  "zip -r": ["photos/", "photos/cats/", "photos/cats/b.png", "photos/cats/a.png", "photos/ships/c.png"],
  "macOS": ["cats/b.png", "cats/a.png", "__MACOSX/cats/._a.png", "ships/c.png", "ships/.DS_Store"],
}


@pytest.mark.parametrize("maker", ZIPS)
def test_class_folders_of_a_zip(tmp_path, maker):
  source = open_source(write_zip(tmp_path / "a.zip", ZIPS[maker]))
  assert [name.rsplit("/", 2)[-2:] for name in source.names] == [
    ["cats", "a.png"], ["cats", "b.png"], ["ships", "c.png"],
  ]  # fmt: skip
  assert labels(source).tolist() == [0, 0, 1] and class_names(source) == ("cats", "ships")
  assert told(source) == ["2 classes: 0 cats, 1 ships"]


@pytest.mark.parametrize("folder", ["", "set/"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_edms_labels_whatever_the_slashes_and_the_folder_around(tmp_path, separator, folder):
  names = [f"{folder}00000/img{i:08d}.png".replace("/", separator) for i in range(4)]
  pairs = [[f"00000/img{i:08d}.png", (i + 1) % 3] for i in range(4)]
  source = open_source(write_zip(tmp_path / "a.zip", names, (f"{folder}dataset.json", {"labels": pairs})))
  assert labels(source).tolist() == [1, 2, 0, 1]


class Unsaid(zipfile.ZipInfo):
  """An entry whose name is in UTF-8 without the flag that says so, as of Info-ZIP."""

  __slots__ = ()

  def _encodeFilenameFlags(self):
    return self.filename.encode(), self.flag_bits & ~0x800


@pytest.mark.parametrize("kind", [zipfile.ZipInfo, Unsaid])
def test_names_that_are_not_ascii(tmp_path, kind):
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    for name in ("Köter/ä.png", "zebra/b.png"):
      archive.writestr(kind(name), png(PIXELS[3][0]))
  source = open_source(f"zip:{tmp_path / 'a.zip'}")
  assert class_names(source) == ("Köter", "zebra") and images(source).shape == (2, 5, 4, 3)


def test_two_entries_of_one_name_are_told(tmp_path):
  with pytest.raises(UserError, match=r"a/1\.png = two entries: expected one of each name"):
    open_source(write_zip(tmp_path / "a.zip", ["a/1.png", "a\\1.png"]))


def test_classes_that_are_numbers_start_at_one_or_are_skipped(tmp_path):
  one = png(PIXELS[3][0])
  source = open_source(write(tmp_path / "numbers", {f"{n}/0.png": one for n in (1, 2, 10)}))
  assert told(source) == ["3 classes: 0 1, 1 10, 2 2"]
  names = ["0.png", "1.png", "2.png"]
  described = {"labels": [[name, label] for name, label in zip(names, (1, 4, 2), strict=True)]}
  source = open_source(write_zip(tmp_path / "a.zip", names, ("dataset.json", described)))
  assert told(source) == ["5 classes; of 0, 3 there is no image (numbers are kept as they are)"]
  (tmp_path / "numbers" / "7").mkdir()
  assert "no image in the folder 7" in told(open_source(f"folder:{tmp_path / 'numbers'}"))


def test_class_names_of_a_described_set_must_fit(tmp_path):
  described = {"labels": [["0.png", 0], ["1.png", 2]], "class_names": ["a", "b"]}
  with pytest.raises(UserError, match="class_names = .* a name of its own for each of the 3 classes"):
    open_source(write_zip(tmp_path / "a.zip", ["0.png", "1.png"], ("dataset.json", described)))


@pytest.mark.parametrize("form", ["zip", "array_record"])
def test_prepared_sets_keep_the_names_of_their_classes(tmp_path, form):
  from cm_jax.data.prepare import Prepare

  spec = write(
    tmp_path / "in", {f"{name}/{i}.png": png(PIXELS[3][i]) for name in ("zoo", "10", "ant") for i in (0, 1)}
  )
  out = tmp_path / ("a.zip" if form == "zip" else "a")
  (made,) = Prepare(spec, str(out), format=form, name=None if form == "zip" else "mine")()
  written = open_source(made.spec)
  assert class_names(written) == class_names(open_source(spec)) == ("10", "ant", "zoo")
  assert made.told == ["3 classes: 0 10, 1 ant, 2 zoo"] and written.fingerprint == made.fingerprint


def test_labels_do_not_matter_to_a_model_without_classes(tmp_path):
  """A run on a zip of class folders goes on that began when these were not read."""
  from cm_jax.data.sources import is_data_of

  source = open_source(write_zip(tmp_path / "a.zip", ZIPS["zip -r"]))
  former = open_source(write_zip(tmp_path / "b.zip", ["a.png", "b.png", "c.png"])).fingerprint
  entries = {"a.png": 3, "b.png": 2, "c.png": 4}  # the images of the other, in the order of their names
  with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
    for name, index in entries.items():
      archive.writestr(name, png(PIXELS[3][index % 6]))
  same = open_source(f"zip:{tmp_path / 'c.zip'}").fingerprint
  assert source.fingerprint not in (same, former)
  assert is_data_of(source, same, conditional=False) and not is_data_of(source, same, conditional=True)
  assert not is_data_of(source, former, conditional=False)


def test_classes_of_one_set_in_the_numbers_of_another():
  given = Classes(np.array([1, 0, -1, 2]), ("ant", "bee", "cow"))
  assert renumbered(given, ("bee", "cow", "dog", "ant"), 4, "x").tolist() == [0, 3, -1, 1]
  assert renumbered(given, (), 3, "x").tolist() == [1, 0, -1, 2]  # nothing is known of the model's
  assert renumbered(Classes(np.array([3, 0])), ("a", "b", "c", "d"), 4, "x").tolist() == [3, 0]
  with pytest.raises(UserError, match="source = x: expected no class that the model has not, such as ant"):
    renumbered(given, ("bee", "cow", "dog"), 3, "x")
  assert renumbered(Classes(np.array([1, 2]), given.names), ("bee", "cow", "dog"), 3, "x").tolist() == [0, 1]
  with pytest.raises(UserError, match="class numbers below 2"):
    renumbered(Classes(np.array([0, 2])), (), 2, "x")


@pytest.mark.parametrize(
  ("resolution", "channels", "least", "most"),
  [(8, 1, 1.5, 2.5), (28, 1, 1.5, 2.5), (32, 3, 1.5, 2.5), (64, 3, 6.5, 9.5), (128, 3, 17, 23)],
)
def test_the_small_network_has_about_the_parameters_that_it_says(resolution, channels, least, most):
  net = SmallUNet(img_resolution=resolution, in_channels=channels, out_channels=channels)
  shapes = jax.eval_shape(lambda: init_params(net, jax.random.key(0), (resolution, resolution, channels)))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6
  assert least < count < most


@pytest.mark.parametrize("crop", ["center", "adm", "edm"])
def test_prepared_beforehand_or_cropped_as_loaded_are_the_same_pixels(tmp_path, crop):
  from cm_jax.data.prepare import Prepare

  photos = [Image.fromarray(PHOTO).resize((90 + 31 * i, 140 - 17 * i)) for i in range(3)]
  files = {
    "a.jpg": encoded(photos[0], "JPEG", **turned_by(5)),
    "b.webp": encoded(photos[1], "WEBP"),
    "c.png": encoded(photos[2].convert("RGBA").rotate(30), "PNG"),
  }
  spec, out = write(tmp_path / "in", files), tmp_path / "a.zip"
  (made,) = Prepare(spec, str(out), resolution=20, crop=crop, alpha="black")()
  source = open_source(spec, framing=Framing(crop, 20, "black"))
  np.testing.assert_array_equal(images(open_source(f"zip:{out}")), images(source))
  assert (
    "1 turned as their EXIF data asks" in made.told and "1 with an alpha channel: over black" in made.told
  )
