"""Reference statistics of every peer's form, and of ours; what is damaged, pickled or of another kind is one
line."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics.frechet import Moments
from cm_jax.evaluation.references import Statistics, read_statistics, save_statistics
from cm_jax.evaluation.references.files import holds_images

rng = np.random.default_rng(11)
SIZE = 6


def gaussian(size=SIZE):
  a = rng.standard_normal((size, size + 3))
  return rng.standard_normal(size), a @ a.T / 3


class Toy:
  name, hash, image_shape, size, resize, gives = "toy", "a" * 64, None, SIZE, "none", ()


def test_edm_adm_and_edm2(tmp_path):
  mu, sigma = gaussian()
  mu_s, sigma_s = gaussian(4)
  np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
  images = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
  np.savez(tmp_path / "adm.npz", arr_0=images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
  np.savez(tmp_path / "images.npz", arr_0=images)
  content = {"fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": mu_s, "sigma": sigma_s}}
  (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(content))
  for name, features in (("edm.npz", "inception"), ("adm.npz", "inception"), ("edm2.pkl", "inception")):
    found = read_statistics(tmp_path / name, features)
    np.testing.assert_array_equal(found.moments.mean, mu)
    np.testing.assert_allclose(found.moments.covariance, sigma, rtol=1e-15)
    assert len(found.hash) == 64 and found.about == {}
    assert (found.spatial_moments is not None) == (name == "adm.npz")
  np.testing.assert_allclose(read_statistics(tmp_path / "adm.npz").spatial_moments.covariance, sigma_s)
  np.testing.assert_array_equal(read_statistics(tmp_path / "edm2.pkl", "dinov2-l").moments.mean, mu_s)
  assert read_statistics(tmp_path / "images.npz") is None
  assert [holds_images(tmp_path / name) for name in ("edm.npz", "adm.npz", "edm2.pkl")] == [
    False,
    True,
    False,
  ]
  with pytest.raises(UserError, match=r"statistics dinov2-b \(of dinov2-b\), not only fd_dinov2, fid"):
    read_statistics(tmp_path / "edm2.pkl", "dinov2-b")


def test_ours_says_what_it_is_of(tmp_path):
  features = rng.standard_normal((40, SIZE)).astype(np.float32)
  about = {"features_hash": "a" * 64, "convention": "edm", "image_shape": [8, 8, 3], "source": "ü"}
  save_statistics(tmp_path / "ours.npz", Statistics(Moments.of(features), None, about))
  found = read_statistics(tmp_path / "ours.npz")
  assert found.about == about and found.moments.count == 40
  np.testing.assert_allclose(found.moments.covariance, np.cov(features.astype(float), rowvar=False))
  with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
    assert sorted(file.files) == ["about", "mu", "n", "sigma"]
  given = {"features_hash": "a" * 64, "convention": "edm", "image_shape": (8, 8, 3)}
  found.check("reference", "ours.npz", Toy(), given)
  wrong = {
    "features hash": {"features_hash": "b" * 64},
    "convention": {"convention": "adm"},
    "image shape": {"image_shape": (8, 8, 1)},
  }
  for what, change in wrong.items():
    with pytest.raises(UserError, match=rf"^reference = ours\.npz: expected statistics of the {what} "):
      found.check("reference", "ours.npz", Toy(), {**given, **change})
  other = Toy()
  other.size = 7
  with pytest.raises(UserError, match="of the 7 features of toy, not of 6"):
    found.check("reference", "ours.npz", other, given)


def damaged(tmp_path, how):
  mu, sigma = gaussian()
  path = tmp_path / "bad.npz"
  np.savez(path, mu=mu, sigma=sigma)
  data = path.read_bytes()
  contents = {
    "pickled": {"mu": np.array([{"a": 1}], object), "sigma": sigma},
    "one alone": {"mu": mu},
    "shapes": {"mu": mu[:-1], "sigma": sigma},
    "nan": {"mu": mu * np.nan, "sigma": sigma},
    "no covariance": {"mu": mu, "sigma": -sigma},
    "long text": {"mu": mu, "sigma": sigma, "about": np.array("x" * (1 << 17))},
    "no json": {"mu": mu, "sigma": sigma, "about": np.array("{")},
    "something else": {"x": mu},
  }
  if how in contents:
    np.savez(path, **contents[how])
  elif how == "cut":
    path.write_bytes(data[: len(data) // 2])
  elif how == "empty":
    path.write_bytes(b"")
  elif how == "text":
    path.write_text("mu sigma")
  elif how == "folder":
    path.unlink()
    path.mkdir()
  elif how == "missing":
    path.unlink()
  elif how == "huge":
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 30, 1 << 20)}
    )
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("mu.npy", header.getvalue())
      archive.writestr("sigma.npy", header.getvalue())
  elif how == "evil.pkl":
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
  elif how == "cut.pkl":
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}})[:-40])
  return path


@pytest.mark.parametrize(
  "how",
  ["pickled", "one alone", "shapes", "nan", "no covariance", "long text", "no json", "something else", "cut"]
  + ["empty", "text", "folder", "missing", "huge", "evil.pkl", "cut.pkl"],
)
def test_a_bad_file_is_one_line(tmp_path, how):
  path = damaged(tmp_path, how)
  with pytest.raises(UserError) as caught:
    read_statistics(path)
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)
