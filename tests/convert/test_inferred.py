"""Formats that store no architecture: it is inferred, for every option the published networks differ in."""

import flax.serialization
import jax
import numpy as np
import pytest

from cm_jax import convert
from cm_jax.assembly import load_model
from cm_jax.convert import Choices, jcm, openai
from cm_jax.convert.foreign import build_network
from cm_jax.errors import UserError
from cm_jax.networks import init_params
from cm_jax.storage import weights
from tests.convert import writers

OPENAI = {
  "model_channels": 32,
  "num_res_blocks": 1,
  "channel_mult": (1, 2),
  "attention_resolutions": (2,),
  "num_head_channels": 32,
}
UNETS = {
  "imagenet64": (
    OPENAI | {"num_head_channels": 64, "resblock_updown": True, "use_scale_shift_norm": True},
    10,
    16,
  ),
  "lsun256": (
    OPENAI | {"resblock_updown": True, "channel_mult": (1, 1, 2), "attention_resolutions": (2, 4)},
    0,
    32,
  ),
  "convolutions": (
    OPENAI | {"num_head_channels": 64, "num_res_blocks": 2, "attention_resolutions": ()},
    0,
    16,
  ),
  "one level": (
    OPENAI | {"channel_mult": (1,), "attention_resolutions": (1,), "use_scale_shift_norm": True},
    3,
    8,
  ),
}
NCSNS = {
  "cifar10": ({"nf": 8, "ch_mult": (2, 2, 2), "num_res_blocks": 2, "attn_resolutions": (16,)}, 32),
  "widening": ({"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,)}, 16),
  "no attention": ({"nf": 8, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}, 16),
}


def random_params(name, fields, size, classes=0, channels=3):
  module = build_network({"name": name, **fields}, (size, size, channels), classes)
  shapes = weights.flatten(
    jax.eval_shape(lambda: init_params(module, jax.random.key(0), (size, size, channels)))
  )
  rng = np.random.default_rng(1)
  return {key: (rng.standard_normal(leaf.shape) / 8).astype(np.float32) for key, leaf in shapes.items()}


def as_openai(params, dtype="float32"):
  """Return the weights as OpenAI's files hold them: attention convolves a sequence, the table is as ours."""
  arrays = {}
  for key, array in params.items():
    name = key.replace("/", ".")
    if array.ndim == 4:
      array = array.transpose(3, 2, 0, 1)
      array = array[..., 0] if name.endswith(("qkv.weight", "proj_out.weight")) else array
    elif array.ndim == 2 and name != "label_emb.weight":
      array = array.T
    arrays[name] = np.ascontiguousarray(array).astype(dtype)
  return arrays


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "classes", "size"), UNETS.values(), ids=UNETS)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_openai(fields, classes, size, container, tmp_path):
  params = random_params("openai_unet", fields, size, classes)
  dtype = "float16" if container == "zip" else "float32"
  content, storages = writers.state_dict(as_openai(params, dtype))
  path = tmp_path / "cd_imagenet64_lpips.pt"
  path.write_bytes(
    writers.torch_zip(content, storages) if container == "zip" else writers.torch_legacy(content, storages)
  )
  done = convert.convert(path, tmp_path / "out")
  stored, info = weights.load_weights(tmp_path / "out")
  assert {key: info["network"][key] for key in fields} == {
    key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()
  }
  assert (info["image_shape"], info["num_classes"]) == ((size, size, 3), classes)
  assert info["precond"] == {"name": "boundary", "time_scale": 1000.0} and info["sigmas_by_nfe"] == {
    1: [80.0],
    2: [80.0, 1.382],
  }
  for key, array in weights.flatten(stored["net"]).items():
    np.testing.assert_array_equal(array, params[key].astype(dtype).astype(np.float32), err_msg=key)
  assert (info["kind"], info["clip"], info["renoise"]) == ("consistency", True, "cm")
  named = {"precond boundary, from the file's name", "kind consistency, from the file's name"}
  assert named < set(done.checkpoint.assumed)
  said = Choices(precond={"name": "edm"}, kind="diffusion")
  done = convert.convert(path, tmp_path / "out", choices=said)
  assert not any("from the file's name" in words for words in done.checkpoint.assumed)
  assert done.checkpoint.kind == "diffusion" and not done.checkpoint.sigmas_by_nfe


@pytest.mark.slow
def test_openai_teacher_and_overrides(tmp_path):
  fields, classes, size = UNETS["one level"]
  content, storages = writers.state_dict(as_openai(random_params("openai_unet", fields, size, classes)))
  path = tmp_path / "edm_imagenet64_ema.pt"
  path.write_bytes(writers.torch_zip(content, storages))
  convert.convert(path, tmp_path / "out", choices=Choices(image_size=4, network={"num_head_channels": 16}))
  info = weights.load_weights(tmp_path / "out")[1]
  assert info["precond"] == {"name": "edm", "time_scale": 1000.0} and info["sigmas_by_nfe"] == {}
  assert (info["kind"], info["clip"], info["renoise"]) == ("diffusion", True, None)
  assert info["image_shape"] == (4, 4, 3) and info["network"]["num_head_channels"] == 16
  model = load_model(tmp_path / "out")
  D = jax.jit(lambda x, s: model.denoiser(jax.numpy.array([2]))(x, s))(
    np.ones((1, 4, 4, 3), np.float32), np.full(1, 2.0, np.float32)
  )
  assert np.isfinite(D).all()


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "size"), NCSNS.values(), ids=NCSNS)
def test_jcm(fields, size, tmp_path):
  trees = {tree: weights.unflatten(random_params("jcm_ncsnpp", fields, size)) for tree in jcm.TREES}
  trees["target_params"]["Conv_0"]["bias"] += 1
  path = tmp_path / "cd-lpips" / "checkpoint_80"
  path.parent.mkdir()
  path.write_bytes(
    flax.serialization.to_bytes({"step": 3, "lr": 1e-4, "model_state": {}, "opt_state": {"0": {}}, **trees})
  )
  for tree in jcm.TREES:
    convert.convert(path, tmp_path / "out", choices=Choices(tree=tree))
    stored, info = weights.load_weights(tmp_path / "out")
    assert {key: info["network"][key] for key in fields} == {
      key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()
    }
    assert info["image_shape"] == (size, size, 3) and info["precond"] == {"name": "boundary"}
    assert info["kind"] == "consistency"
    assert info["sigmas_by_nfe"] == {1: [80.0], 2: [80.0, 0.585]}
    assert (info["clip"], info["renoise"]) == (True, "cm")
    expected = weights.flatten(trees[tree])
    for key, array in weights.flatten(stored["net"]).items():
      np.testing.assert_array_equal(array, expected[key], err_msg=key)


def test_jcm_without_target(tmp_path):
  params = weights.unflatten(random_params("jcm_ncsnpp", *NCSNS["widening"]))
  path = tmp_path / "edm_cifar10_ema"
  path.write_bytes(flax.serialization.to_bytes({"params": params, "params_ema": params, "step": 1}))
  convert.convert(path, tmp_path / "out")
  info = weights.load_weights(tmp_path / "out")[1]
  assert info["precond"] == {"name": "edm"} and info["licence"] == "Apache-2.0"
  assert info["kind"] == "diffusion"
  with pytest.raises(UserError, match="with target_params; this one has params_ema, params"):
    convert.convert(path, tmp_path / "out", choices=Choices(tree="target_params"))


def test_jcm_of_another_architecture(tmp_path):
  fields = {
    "nf": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "resblock_type": "ddpm",
    "embedding_type": "positional",
  }
  params = weights.unflatten(random_params("jcm_ncsnpp", fields, 16))
  (tmp_path / "checkpoint_1").write_bytes(flax.serialization.to_bytes({"params_ema": params}))
  with pytest.raises(UserError, match="known architecture"):
    convert.convert(tmp_path / "checkpoint_1", tmp_path / "out")
  with pytest.raises(UserError, match="expected image_size beside a whole network"):
    convert.convert(tmp_path / "checkpoint_1", tmp_path / "out", choices=Choices(network=fields))
  convert.convert(tmp_path / "checkpoint_1", tmp_path / "out", choices=Choices(network=fields, image_size=16))
  assert weights.load_weights(tmp_path / "out")[1]["network"]["resblock_type"] == "ddpm"


@pytest.mark.parametrize(
  "change",
  [
    lambda a: a.pop("time_embed.0.weight"),
    lambda a: a.pop("out.2.weight"),
    lambda a: [a.pop(name) for name in list(a) if name.startswith("output_blocks")],
    lambda a: a.update({"output_blocks.9.0.in_layers.2.weight": np.zeros((32, 32, 3, 3), np.float32)}),
    lambda a: a.update({"input_blocks.1.0.out_layers.3.weight": np.zeros((33, 32, 3, 3), np.float32)}),
    lambda a: [a.update({name.replace("input", "encoder"): a.pop(name)}) for name in list(a)],
  ],
)
def test_other_state_dicts_are_refused(change, tmp_path):
  arrays = as_openai(random_params("openai_unet", *[UNETS["imagenet64"][i] for i in (0, 2, 1)]))
  change(arrays)
  content, storages = writers.state_dict(arrays)
  (tmp_path / "file.pt").write_bytes(writers.torch_zip(content, storages))
  with pytest.raises(UserError) as error:
    convert.convert(tmp_path / "file.pt", tmp_path / "out")
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_every_published_name_has_a_preconditioning_and_a_kind():
  levels = {name: published.middle for name, published in openai.PUBLISHED.items() if published.middle}
  assert levels == {
    "cd_imagenet64_l2": 1.382, "cd_imagenet64_lpips": 1.382, "ct_imagenet64": 1.913,
    "cd_bedroom256_l2": 3.520, "cd_bedroom256_lpips": 4.366, "ct_bedroom256": 3.991, "ct_cat256": 5.249,
  }  # fmt: skip
  for name, published in openai.PUBLISHED.items():
    assert published[:2] == (("edm", "diffusion") if name.startswith("edm_") else ("boundary", "consistency"))
