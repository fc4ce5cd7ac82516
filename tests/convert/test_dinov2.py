"""Published files of DINOv2: facebookresearch's, those of transformers, ours; or one line."""

import numpy as np
import pytest
import safetensors.numpy

from cm_jax import cli
from cm_jax.convert import dinov2 as published
from cm_jax.errors import UserError
from cm_jax.networks import dinov2
from tests.convert import writers
from tests.networks.test_dinov2 import TINY, arrays


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(dinov2.SIZES, "dinov2-b", TINY)


def of_facebook(ours):
  turned = lambda a: a.T if a.ndim == 2 else a.transpose(3, 2, 0, 1) if a.ndim == 4 else a
  found = {name: turned(array) for name, array in ours.items()}
  found["cls_token"] = ours["cls_token"].reshape(1, 1, -1)
  found["pos_embed"] = ours["pos_embed"][None]
  found["mask_token"] = np.zeros((1, TINY.features), np.float32)
  return found


def of_transformers(ours):
  theirs, found = of_facebook(ours), {}
  renamed = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token", "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "blocks.": "encoder.layer.", "attn.proj.": "attention.output.dense.", "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
  }  # fmt: skip
  for name, array in theirs.items():
    new = f"layernorm.{name.rpartition('.')[2]}" if name.startswith("norm.") else name
    for old, other in renamed.items():
      new = new.replace(old, other)
    if ".attn.qkv." in new:
      for part, split in zip(("query", "key", "value"), np.split(array, 3), strict=True):
        found[new.replace(".attn.qkv.", f".attention.attention.{part}.")] = split
    else:
      found[new] = array
  return found


@pytest.mark.parametrize("whose", ["facebookresearch", "transformers", "ours"])
def test_each_form_is_the_same_network(tmp_path, whose):
  ours = arrays(seed=5)
  given = {"ours": lambda a: a, "facebookresearch": of_facebook, "transformers": of_transformers}[whose](ours)
  given = {name: np.ascontiguousarray(array) for name, array in given.items()}
  if whose == "facebookresearch":
    path = tmp_path / "dinov2_vitb14_pretrain.pth"
    path.write_bytes(writers.torch_zip(*writers.state_dict(given)))
  else:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(given, path)
  out = tmp_path / "out.safetensors"
  about = published.convert_dinov2("dinov2-b", path, out)
  assert about["published_by"] == "unknown"
  found = safetensors.numpy.load_file(out)
  assert found.keys() == ours.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"blocks.1.mlp.w12.weight": np.zeros((2, 2), np.float32)},
      "blocks.1.mlp.w12.weight = .2, 2.: expected no such",
    ),
    ({"pos_embed": np.zeros((3, 5, 128), np.float32)}, "input = .* a whole file of DINOv2's weights"),
    ({"register_tokens": np.zeros((1, 4, 128), np.float32)}, "register_tokens = .* expected no such array"),
  ],
)
def test_another_network_is_one_line(tmp_path, change, message):
  given = {name: np.ascontiguousarray(a) for name, a in {**of_facebook(arrays()), **change}.items()}
  path = tmp_path / "other.pth"
  path.write_bytes(writers.torch_zip(*writers.state_dict(given)))
  with pytest.raises(UserError, match=message):
    published.convert_dinov2("dinov2-b", path, tmp_path / "out.safetensors")
  assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
  "name", ["cls_token", "blocks.0.attn.qkv.bias", "pos_embed", "patch_embed.proj.weight"]
)
def test_arrays_of_any_shape_are_one_line(tmp_path, name):
  """Of either form, by either name."""
  for shape in ((), (0,), (7,), (2, 3, 5), (1, 1, 1, 1, 1)):
    for form in (of_facebook, of_transformers):
      given = form(arrays())
      changed = next(key for key in given if key == name or key.endswith(("query.bias", name.split(".")[-1])))
      given = {key: np.ascontiguousarray(array) for key, array in given.items()}
      given[changed] = np.zeros(shape, np.float32)
      safetensors.numpy.save_file(given, tmp_path / "m.safetensors")
      with pytest.raises(UserError) as caught:
        published.read("dinov2-b", tmp_path / "m.safetensors")
      assert "\n" not in str(caught.value)


def test_the_command_says_what_is_missing(tmp_path, capsys):
  out = tmp_path / "d.safetensors"
  for file in ("none.pth", "none.safetensors"):
    assert cli.run(["convert", "--from=dinov2-b", f"--input={file}", f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert f"--input = {file}" in said and said.count("\n") == 1


def test_pins_are_whole():
  assert published.PUBLISHED.keys() <= dinov2.SIZES.keys()
  assert all(len(sha256) == 64 and url.startswith("https://") for url, sha256 in published.PUBLISHED.values())
