"""Images that are given: of every form, in batches from any of them on; what is none is one line."""

import numpy as np
import pytest
from PIL import Image

from cm_jax.errors import UserError
from cm_jax.evaluation.given import open_images

rng = np.random.default_rng(3)
IMAGES = rng.integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)


def read(images, start=0, size=4):
  return np.concatenate(list(images.batches(start, len(images), size)))


@pytest.mark.parametrize("key", ["arr_0", "samples", "images"])
def test_arrays_of_peers(tmp_path, key):
  np.savez(tmp_path / "a.npz", **{key: IMAGES, "label": np.arange(11)})
  np.savez_compressed(tmp_path / "b.npz", **{key: np.moveaxis(IMAGES, 3, 1)})
  for name in ("a.npz", "b.npz"):
    found = open_images(str(tmp_path / name), "images")
    assert found.shape == (6, 5, 3) and len(found) == 11 and found.quantiser is None
    np.testing.assert_array_equal(read(found), IMAGES)
    np.testing.assert_array_equal(read(found, 7, 3), IMAGES[7:])
  np.testing.assert_array_equal(read(open_images(f"npz:{tmp_path / 'a.npz'}", "images")), IMAGES)


def test_floats_become_uint8_as_the_convention_says(tmp_path):
  x = np.linspace(-1, 1, 11 * 6 * 5 * 3).reshape(IMAGES.shape)
  np.save(tmp_path / "a.npy", x.astype(np.float32))
  for quantiser, offset in (("edm", 128), ("adm", 127.5)):
    found = open_images(str(tmp_path / "a.npy"), "images", quantiser)
    wanted = np.clip(np.floor(np.float32(127.5) * x.astype(np.float32) + np.float32(offset)), 0, 255)
    assert found.quantiser == quantiser
    assert np.abs(read(found).astype(int) - wanted).max() <= 1  # where float32 rounds a level
    assert (read(found) == wanted).mean() > 0.99


def test_folders_zips_and_sources(tmp_path):
  (tmp_path / "f").mkdir()
  for number, image in enumerate(IMAGES):
    Image.fromarray(image).save(tmp_path / "f" / f"{number:03d}.png")
  for path in (str(tmp_path / "f"), f"folder:{tmp_path / 'f'}"):
    found = open_images(path, "images")
    assert found.spec == f"folder:{tmp_path / 'f'}" and len(found.fingerprint) == 64
    np.testing.assert_array_equal(read(found, 2), IMAGES[2:])
  assert len(open_images("digits:test", "images")) == 360
  Image.fromarray(IMAGES[0, :4]).save(tmp_path / "f" / "999.png")
  with pytest.raises(UserError, match="4x5x3: expected 6x5x3"):
    read(open_images(str(tmp_path / "f"), "images"))


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ({"arr_0": IMAGES.astype(np.float32) / 255}, "no number of the first images is negative"),
    ({"arr_0": IMAGES.astype(np.float32) / 20 - 6}, r"floats in \[-1, 1\], or uint8: one is"),
    ({"arr_0": IMAGES.astype(np.int64)}, r"not arr_0 int64 \[11, 6, 5, 3\]"),
    ({"arr_0": IMAGES[..., :2]}, r"C = 1 or 3, not arr_0"),
    ({"arr_0": IMAGES[0]}, "not arr_0"),
    ({"arr_0": np.array([{}], object)}, "pickled objects"),
    ({"mu": np.zeros(3)}, "it holds mu, none of arr_0"),
  ],
)
def test_other_arrays_are_one_line(tmp_path, content, said):
  np.savez(tmp_path / "a.npz", **content)
  with pytest.raises(UserError, match=said) as caught:
    read(open_images(str(tmp_path / "a.npz"), "images"))
  assert str(caught.value).startswith(f"images = npz:{tmp_path / 'a.npz'}: expected")


def test_nan_is_told_with_its_image(tmp_path):
  x = IMAGES / 127.5 - 1
  x[9, 3, 2, 1] = np.nan
  np.savez(tmp_path / "a.npz", x)
  with pytest.raises(UserError, match="image 9 has NaN"):
    read(open_images(str(tmp_path / "a.npz"), "images"))


@pytest.mark.parametrize("how", ["missing", "cut", "text"])
def test_damaged_files(tmp_path, how):
  path = tmp_path / "a.npz"
  if how != "missing":
    np.savez(path, IMAGES)
    path.write_bytes(path.read_bytes()[:-300] if how == "cut" else b"no zip")
  with pytest.raises(UserError, match="^images = ") as caught:
    read(open_images(str(path), "images"))
  assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match="^images = nothing.here: expected a folder"):
    open_images("nothing.here", "images")
