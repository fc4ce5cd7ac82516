"""Weights folders: all or nothing, anywhere, and nothing that was not asked for."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.storage import digests, weights
from cm_jax.types import NoiseRange
from tests.storage.places import WRITES, disk_of, names

INFO = {
  "kind": "consistency",
  "network": {"name": "toy", "width": 4},
  "precond": {"name": "edm"},
  "sigma_min": 0.002,
  "sigma_max": 80.0,
  "sigma_data": 0.5,
  "rho": 7.0,
  "num_classes": 0,
  "image_shape": (8, 8, 1),
  "sigmas_by_nfe": {2: (80.0, 0.8)},
  "source_sha256": "0" * 64,
  "licence": "Apache-2.0",
}
PARAMS = {
  "net": {
    "enc.8x8_conv": {"weight": np.arange(6.0).reshape(2, 3), "scale": np.float32(3)},
    "map": {"b": jnp.ones(3, jnp.bfloat16)},
  }
}


def test_round_trip(place):
  folder = weights.save_weights(place / "w", PARAMS, INFO)
  params, info = weights.load_weights(folder)
  assert set(weights.flatten(params)) == {"net/enc.8x8_conv/weight", "net/enc.8x8_conv/scale", "net/map/b"}
  for name, array in weights.flatten(params).items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.asarray(weights.flatten(PARAMS)[name], np.float32))
  assert params["net"]["enc.8x8_conv"]["scale"].shape == ()
  written = {"weights_sha256": digests.of_file(folder / "weights.safetensors")}
  assert info == {"format": weights.FORMAT, **INFO, "sigmas_by_nfe": {2: [80.0, 0.8]}, **written}
  assert names(place) == ["w/model.json", "w/weights.safetensors"]


def test_a_folder_is_like_any_other(tmp_path):
  folder = weights.save_weights(tmp_path / "w", PARAMS, INFO)
  (tmp_path / "ordinary").mkdir()
  assert os.stat(folder).st_mode == os.stat(tmp_path / "ordinary").st_mode


def test_the_file_that_makes_a_folder_complete_comes_last():
  WRITES.clear()
  weights.save_weights("memory://bucket/w", PARAMS, INFO)
  assert [address.rsplit("/")[-1] for address in WRITES] == ["weights.safetensors", "model.json"]


def test_replaces_a_weights_folder_only(place):
  weights.save_weights(place / "w", PARAMS, INFO)
  weights.save_weights(place / "w", {"net": {"a": np.ones(2)}}, INFO)
  assert set(weights.flatten(weights.load_weights(place / "w")[0])) == {"net/a"}
  (place / "w" / "thesis.tex").write_bytes(b"years of work")
  with pytest.raises(UserError, match=r"thesis\.tex"):
    weights.save_weights(place / "w", PARAMS, INFO)
  assert (place / "w" / "thesis.tex").read_text() == "years of work"
  (place / "file").write_bytes(b"x")
  with pytest.raises(UserError, match="expected a folder"):
    weights.save_weights(place / "file", PARAMS, INFO)


@pytest.mark.parametrize("size", [100, 1000])
def test_a_full_disk_is_named_by_the_folder_and_leaves_what_was_there(tmp_path, size):
  """The parameters do not fit; or they do, and model.json does not."""
  weights.save_weights(tmp_path / "w", {"net": {"a": np.ones(2)}}, INFO)
  long = {**INFO, "licence": "word " * 300}
  for folder in (tmp_path / "w", tmp_path / "new"):
    with (
      disk_of(size),
      pytest.raises(UserError, match=f"^{folder} = .*too large.*: expected a place that can"),
    ):
      weights.save_weights(folder, PARAMS, long)
  assert set(weights.flatten(weights.load_weights(tmp_path / "w")[0])) == {"net/a"}
  assert names(tmp_path) == ["w/model.json", "w/weights.safetensors"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
  weights.save_weights(tmp_path / "w", {"net": {"a": np.ones(2)}}, INFO)

  def fail(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(safetensors.numpy, "save_file", fail)
  with pytest.raises(UserError, match="No space left"):
    weights.save_weights(tmp_path / "w", PARAMS, INFO)
  assert set(weights.flatten(weights.load_weights(tmp_path / "w")[0])) == {"net/a"}
  assert [p.name for p in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"sigma_min": -1.0}, "sigma_min"),
    ({"image_shape": (8, 8)}, "image_shape"),
    ({"network": {"width": 4}}, "network"),
    ({"note": "hello"}, "unknown"),
    ({"format": 3}, "format = 3: expected 1 to 2"),
    ({"format": True}, "format = True"),
    ({"kind": None}, "kind = None: expected one of: consistency, diffusion, flow_map"),
    ({"kind": "difusion"}, r"kind = difusion: expected 'diffusion' \(did you mean it\?\)"),
    ({"num_classes": "many"}, "num_classes"),
  ],
)
def test_bad_info(tmp_path, change, match):
  with pytest.raises(UserError, match=match):
    weights.save_weights(tmp_path / "w", PARAMS, {**INFO, **change})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "params",
  [
    {"net": {"a/b": np.ones(1)}},
    {"net": {"a": np.ones(1, np.int32)}},
    {"a": np.ones(1)},
    {"net": {"": np.ones(1)}},
  ],
)
def test_bad_params(tmp_path, params):
  with pytest.raises(UserError):
    weights.save_weights(tmp_path / "w", params, INFO)
  assert not list(tmp_path.iterdir())


def test_damaged_folder(place):
  folder = weights.save_weights(place / "w", PARAMS, INFO)
  file = folder / "weights.safetensors"
  content = file.read_bytes()
  for damaged in (b"", content[:-5], content[:40], b"\xff" * 8 + content[8:]):
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="weights folder"):
      weights.load_weights(folder)
  file.write_bytes(content)
  (folder / "model.json").write_bytes(b"[1]")
  with pytest.raises(UserError, match="JSON object"):
    weights.load_weights(folder)
  with pytest.raises(UserError, match="weights folder"):
    weights.load_weights(place / "absent")


@pytest.mark.parametrize("at", [-1, -17, -30])
def test_a_bit_of_the_weights_that_flips_is_noticed_unless_the_folder_is_older_than_its_sha256(place, at):
  folder = weights.save_weights(place / "w", {"net": {"a": np.arange(8.0)}}, INFO)
  file = folder / "weights.safetensors"
  content = bytearray(file.read_bytes())
  content[at] ^= 2
  file.write_bytes(bytes(content))
  with pytest.raises(UserError, match="weights folder = .*not what was written"):
    weights.load_weights(folder)
  with pytest.raises(UserError, match="weights_sha256 = 12: expected the sha256"):
    weights.load_weights(rewritten(folder, weights_sha256="12"))
  params = weights.load_weights(rewritten(folder, weights_sha256=None))[0]  # as before there was one
  assert (params["net"]["a"] != np.arange(8.0)).sum() == 1
  again = weights.save_weights(place / "again", params, {**INFO, "weights_sha256": "0" * 64})
  np.testing.assert_array_equal(weights.load_weights(again)[0]["net"]["a"], params["net"]["a"])


def rewritten(folder, **change):
  """Change what a model.json says, None removes a key."""
  file = folder / "model.json"
  info = {
    key: value for key, value in {**json.loads(file.read_text()), **change}.items() if value is not None
  }
  file.write_bytes(json.dumps(info).encode())
  return folder


def test_a_folder_of_the_first_format_may_lack_the_kind_and_keeps_its_format(place):
  folder = rewritten(weights.save_weights(place / "w", PARAMS, INFO), format=1, kind=None)
  params, info = weights.load_weights(folder)
  assert info["kind"] is None and info["format"] == 1
  weights.update_info(folder, lambda info: {**info, "licence": "mine"})
  assert json.loads((folder / "model.json").read_text()).keys() == info.keys() - {"kind"}
  assert weights.load_weights(folder)[1] == {**info, "licence": "mine"}
  with pytest.raises(UserError, match="kind = None"):
    weights.save_weights(place / "again", params, info)
  weights.save_weights(place / "again", params, {**info, "kind": "diffusion"})
  assert weights.load_weights(place / "again")[1] == {**info, "kind": "diffusion", "format": weights.FORMAT}


@pytest.mark.parametrize(
  "change", [{"format": 3}, {"kind": None}, {"kind": "gan"}, {"format": "2"}, {"more": 1}]
)
def test_a_newer_or_wrong_folder_is_one_line(place, change):
  folder = rewritten(weights.save_weights(place / "w", PARAMS, INFO), **change)
  with pytest.raises(UserError, match=r"model\.json") as error:
    weights.load_weights(folder)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [["cat"], "cat", [1, 2], {"cat": 0, "dog": 1}])
def test_class_names_are_those_of_the_classes(tmp_path, names):
  fitting = {**INFO, "num_classes": 2, "class_names": ["dog", "cat"]}
  weights.save_weights(tmp_path / "w", PARAMS, fitting)
  assert weights.load_weights(tmp_path / "w")[1]["class_names"] == ["dog", "cat"]
  with pytest.raises(UserError, match="class_names"):
    weights.save_weights(tmp_path / "v", PARAMS, {**fitting, "class_names": names})


def test_what_a_model_says_of_itself_is_all_but_where_it_comes_from():
  noise = NoiseRange(sigma_max=50.0, rho=5.0)
  about = {"network": {"name": "toy", "channel_mult": (1, 2)}, "precond": {"name": "edm"}}
  model = Model(None, PARAMS, "diffusion", noise, (8, 8, 1), 0, **about, sigmas_by_nfe={2: (50.0, 0.8)})
  info = weights.info_of(model)
  more = ("rho", "class_names", "matmul_precision", "guidable", "clip", "renoise")
  assert {*info, "source_sha256", "licence"} == {*weights.INFO_KEYS, *more}
  assert (
    weights.noise_of(info) == noise
    and info["kind"] == "diffusion"
    and info["sigmas_by_nfe"] == {2: [50.0, 0.8]}
  )
  assert weights.info_of(dataclasses.replace(model, kind="consistency")) == {**info, "kind": "consistency"}


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_whoever_the_umask_lets_may_read_the_weights(tmp_path, umask):
  before = os.umask(umask)
  try:
    folder = weights.save_weights(tmp_path / "w", PARAMS, INFO)
    assert {os.stat(path).st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}
    assert os.umask(umask) == umask
  finally:
    os.umask(before)
