"""Checkpoints become weights folders: strictly, completely, or not at all."""

import json
import math
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from cm_jax import cli, convert
from cm_jax.assembly import load_model
from cm_jax.convert import Choices
from cm_jax.convert.foreign import build_network
from cm_jax.diffusion.precond import IDDPM
from cm_jax.errors import UserError
from cm_jax.networks import init_params
from cm_jax.storage import downloads, weights
from cm_jax.types import NoiseRange
from tests.convert import writers
from tests.storage.places import STORED

FIELDS = {
  "model_channels": 8,
  "channel_mult": [1, 2],
  "num_blocks": 1,
  "attn_resolutions": [4],
  "dropout": 0.2,
  "channel_mult_emb": 2,
}
KWARGS = {
  "img_resolution": 8,
  "img_channels": 3,
  "label_dim": 4,
  "use_fp16": False,
  "model_type": "SongUNet",
  "augment_dim": 2,
  **FIELDS,
}


@pytest.fixture(scope="module")
def params():
  """Random weights of a small SongUNet with everything in it."""
  module = build_network({"name": "songunet", "augment_dim": 2, **FIELDS}, (8, 8, 3), 4)
  shapes = weights.flatten(jax.eval_shape(lambda: init_params(module, jax.random.key(0), (8, 8, 3))))
  rng = np.random.default_rng(0)
  return {name: rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


def theirs(params, dtype="float32"):
  """Return the weights as an EDM file holds them: OIHW, [out, in], filters beside resampling convolutions."""
  order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
  arrays = {
    "model." + name.replace("/", "."): array.transpose(order[array.ndim]).astype(dtype)
    for name, array in params.items()
  }
  for name in list(arrays):
    if "_down.conv0.weight" in name or "_up.conv0.weight" in name:
      arrays[name.replace("weight", "resample_filter")] = np.full((1, 1, 2, 2), 0.25, dtype)
  return arrays


def write(path, arrays, cls="EDMPrecond", kwargs=KWARGS):
  path.write_bytes(writers.snapshot(cls, kwargs, arrays))
  return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_edm_snapshot(params, tmp_path, dtype):
  path = write(tmp_path / "edm.pkl", theirs(params, dtype))
  done = convert.convert(path, tmp_path / "out")
  stored, info = weights.load_weights(tmp_path / "out")
  flat = weights.flatten(stored)
  assert {name.removeprefix("net/") for name in flat} == set(params)
  for name, array in params.items():
    np.testing.assert_array_equal(flat[f"net/{name}"], array.astype(dtype).astype(np.float32))
  assert (done.format, info["image_shape"], info["num_classes"], info["precond"]) == (
    "edm",
    (8, 8, 3),
    4,
    {"name": "edm"},
  )
  assert (info["sigma_min"], info["sigma_max"], info["sigma_data"]) == (0.002, 80.0, 0.5)
  assert (
    info["source_sha256"] == downloads.file_sha256(path)
    and info["source"] == "edm.pkl"
    and info["licence"] == "CC BY-NC-SA 4.0"
  )
  assert (
    info["network"]["dropout"] == 0.2
    and info["network"]["augment_dim"] == 2
    and "img_resolution" not in info["network"]
  )
  model = load_model(tmp_path / "out")
  D = jax.jit(lambda x, sigma: model.denoiser(jax.numpy.array([1, -1]))(x, sigma))(
    np.ones((2, 8, 8, 3), np.float32), np.full(2, 3.0, np.float32)
  )
  assert D.shape == (2, 8, 8, 3) and np.isfinite(D).all()


def test_our_own_folder_goes_through_the_same_door(params, tmp_path):
  convert.convert(write(tmp_path / "edm.pkl", theirs(params)), tmp_path / "out")
  done = convert.convert(tmp_path / "out", tmp_path / "again")
  assert done.format == "cm_jax"
  one, two = weights.load_weights(tmp_path / "out"), weights.load_weights(tmp_path / "again")
  assert set(weights.flatten(one[0])) == set(weights.flatten(two[0]))
  assert {key: two[1][key] for key in ("network", "precond", "licence", "peer")} == {
    key: one[1][key] for key in ("network", "precond", "licence", "peer")
  }
  info = {key: value for key, value in one[1].items() if key != "format"}
  weights.save_weights(tmp_path / "named", one[0], {**info, "class_names": ["dog", "cat", "ox", "elk"]})
  convert.convert(tmp_path / "named", tmp_path / "still")
  assert weights.load_weights(tmp_path / "still")[1]["class_names"] == ["dog", "cat", "ox", "elk"]
  flat = weights.flatten(one[0])
  flat.pop("net/map_layer0/bias")
  weights.save_weights(
    tmp_path / "less",
    weights.unflatten(flat),
    {key: value for key, value in one[1].items() if key != "format"},
  )
  with pytest.raises(UserError, match=r"missing map_layer0\.bias"):
    convert.convert(tmp_path / "less", tmp_path / "again")


@pytest.mark.parametrize(
  ("cls", "own", "precond", "sigmas"),
  [
    ("ECMPrecond", {}, {"name": "ect"}, (0.003, 80.0)),
    (
      "VPPrecond",
      {"beta_d": 20.0},
      {"name": "vp", "beta_d": 20.0, "beta_min": 0.1, "M": 1000},
      (0.002, 80.0),  # as EDM's samplers: 0.002 to 80, as far as the network goes
    ),
    (
      "VPPrecond",
      {"beta_d": 2.0, "epsilon_t": 1e-3},
      {"name": "vp", "beta_d": 2.0, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-3},
      (math.sqrt(math.expm1(1.01e-4)), math.sqrt(math.expm1(1.1))),
    ),
    ("VEPrecond", {}, {"name": "ve"}, (0.02, 80.0)),
    ("VEPrecond", {"sigma_max": 50}, {"name": "ve", "sigma_max": 50}, (0.02, 50.0)),
    ("EDMPrecond", {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0}, {"name": "edm"}, (0.01, 50.0)),
  ],
)
def test_wrappers(params, tmp_path, cls, own, precond, sigmas):
  done = convert.convert(write(tmp_path / "file.pkl", theirs(params), cls, KWARGS | own), tmp_path / "out")
  info = weights.load_weights(tmp_path / "out")[1]
  assert done.format == ("ect" if cls == "ECMPrecond" else "edm") and info["precond"] == precond
  np.testing.assert_allclose((info["sigma_min"], info["sigma_max"]), sigmas, rtol=1e-3)
  assert info["sigma_data"] == own.get("sigma_data", 0.5)


@pytest.mark.slow
def test_a_network_that_gives_a_variance_too(tmp_path):
  module = build_network({"name": "songunet", "out_channels": 6, "augment_dim": 2, **FIELDS}, (8, 8, 3), 4)
  shapes = weights.flatten(jax.eval_shape(lambda: init_params(module, jax.random.key(0), (8, 8, 3))))
  arrays = theirs({name: np.ones(leaf.shape, np.float32) for name, leaf in shapes.items()})
  arrays["u"] = IDDPM(NoiseRange()).levels().astype(np.float32)
  convert.convert(write(tmp_path / "file.pkl", arrays, "iDDPMPrecond"), tmp_path / "out")
  model = load_model(tmp_path / "out")
  assert (
    model.precond == {"name": "iddpm", "C_1": 0.001, "C_2": 0.008, "M": 1000}
    and model.network["out_channels"] == 6
  )
  D = jax.jit(lambda x, s: model.denoiser()(x, s))(
    np.ones((1, 8, 8, 3), np.float32), np.full(1, 2.0, np.float32)
  )
  assert D.shape == (1, 8, 8, 3)
  with pytest.raises(UserError, match="noise levels that C_1"):
    convert.convert(
      write(tmp_path / "file.pkl", arrays, "iDDPMPrecond", KWARGS | {"C_2": 0.01}), tmp_path / "other"
    )


def without(name):
  return lambda arrays: arrays.pop(name)


def changed(name, change):
  return lambda arrays: arrays.update({name: change(arrays[name])})


def nan_at_the_end(array):
  array = array.copy()
  array.flat[-1] = np.nan
  return array


BROKEN = {
  "missing": (without("model.map_layer0.bias"), {}, r"missing map_layer0\.bias"),
  "extra": (lambda arrays: arrays.update({"model.more": np.zeros(1, np.float32)}), {}, "not part of it more"),
  "outside": (lambda arrays: arrays.update({"more": np.zeros(1, np.float32)}), {}, "not more"),
  "shape": (
    changed("model.map_layer0.bias", lambda a: a[1:]),
    {},
    r"map_layer0\.bias of shape \(16,\), not \(15,\)",
  ),
  "turned": (changed("model.map_label.weight", lambda a: a.T.copy()), {}, "map_label.weight of shape"),
  "nan": (
    changed("model.dec.8x8_aux_conv.bias", nan_at_the_end),
    {},
    r"NaN or infinity in dec\.8x8_aux_conv\.bias",
  ),
  "integers": (changed("model.map_layer0.bias", lambda a: a.astype(np.int64)), {}, "floating-point"),
  "filter": (changed("model.dec.8x8_up.conv0.resample_filter", lambda a: a * 2), {}, "filter"),
  "other width": (lambda arrays: None, {"model_channels": 16}, "of shape"),
  "network": (lambda arrays: None, {"model_type": "StyleGAN3"}, "known architecture.*StyleGAN3"),
  "option": (lambda arrays: None, {"use_magic": 3}, "no option use_magic"),
  "type": (lambda arrays: None, {"num_blocks": "many"}, "num_blocks"),
  "blocks": (lambda arrays: None, {"num_blocks": 60_000}, "num_blocks"),
  "resolution": (lambda arrays: None, {"img_resolution": 10**12}, "img_resolution"),
  "sigma_data": (lambda arrays: None, {"sigma_data": -1.0}, "sigma_data"),
}


@pytest.mark.parametrize(("breaks", "kwargs", "match"), BROKEN.values(), ids=BROKEN)
def test_what_does_not_fit_is_refused_by_name(params, tmp_path, breaks, kwargs, match):
  arrays = theirs(params)
  breaks(arrays)
  write(tmp_path / "file.pkl", arrays, kwargs=KWARGS | kwargs)
  with pytest.raises(UserError, match=match) as error:
    convert.convert(tmp_path / "file.pkl", tmp_path / "out")
  assert "\n" not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ["file.pkl"]


def test_nonfinite_weights_on_request(params, tmp_path):
  arrays = theirs(params)
  arrays["model.dec.8x8_aux_conv.bias"] = nan_at_the_end(arrays["model.dec.8x8_aux_conv.bias"])
  convert.convert(write(tmp_path / "file.pkl", arrays), tmp_path / "out", allow_nonfinite=True)
  assert np.isnan(weights.load_weights(tmp_path / "out")[0]["net"]["dec"]["8x8_aux_conv"]["bias"]).sum() == 1


def test_weights_can_go_to_a_bucket(params, tmp_path):
  path = write(tmp_path / "edm.pkl", theirs(params))
  there, here = (convert.convert(path, out).folder for out in ("memory://bucket/edm", tmp_path / "edm"))
  try:
    (theirs_, about), (ours, said) = map(weights.load_weights, (there, here))
    assert about == said
    jax.tree.map(np.testing.assert_array_equal, theirs_, ours)
  finally:
    STORED.clear()


def test_unknown_class_and_wrong_format(params, tmp_path):
  write(tmp_path / "file.pkl", theirs(params), cls="Generator")
  with pytest.raises(UserError, match="not Generator"):
    convert.convert(tmp_path / "file.pkl", tmp_path / "out")
  write(tmp_path / "file.pkl", theirs(params))
  with pytest.raises(UserError, match="for the format ect, not EDMPrecond"):
    convert.convert(tmp_path / "file.pkl", tmp_path / "out", "ect")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine.txt").write_text("x")
  with pytest.raises(UserError, match=r"mine\.txt"):
    convert.convert(tmp_path / "file.pkl", tmp_path / "out")


def test_what_the_user_says_goes(params, tmp_path):
  path = write(tmp_path / "file.pkl", theirs(params))
  convert.convert(
    path, tmp_path / "out", choices=Choices(precond={"name": "boundary"}, network={"dropout": 0.0})
  )
  info = weights.load_weights(tmp_path / "out")[1]
  assert info["precond"] == {"name": "boundary"} and info["network"]["dropout"] == 0.0
  with pytest.raises(UserError, match="no option droput"):
    convert.convert(path, tmp_path / "no", choices=Choices(network={"droput": 0.0}))


def old_folder(folder, new):
  """Make of a weights folder one as it was before model.json said a kind."""
  shutil.copytree(folder, new)
  info = json.loads((new / "model.json").read_text())
  del info["kind"]
  (new / "model.json").write_text(json.dumps({**info, "format": 1}))
  return new


def test_the_kind_is_that_of_the_class_or_what_the_user_says(params, tmp_path):
  kinds = {"EDMPrecond": "diffusion", "VEPrecond": "diffusion", "ECMPrecond": "consistency"}
  for cls, kind in kinds.items():
    path = write(tmp_path / f"{cls}.pkl", theirs(params), cls)
    done = convert.convert(path, tmp_path / cls)
    assert (
      done.checkpoint.kind
      == kind
      == weights.load_weights(tmp_path / cls)[1]["kind"]
      == load_model(done.folder).kind
    )
  path = tmp_path / "EDMPrecond.pkl"
  convert.convert(path, tmp_path / "said", choices=Choices(kind="consistency"))
  assert weights.load_weights(tmp_path / "said")[1]["kind"] == "consistency"
  with pytest.raises(UserError, match=r"^kind = difusion: expected 'diffusion' \(did you mean it\?\)"):
    Choices(kind="difusion")


def test_edm2s_class_is_a_diffusion_model_unless_it_is_ects(tmp_path):
  fields = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
  module = build_network({"name": "edm2", **fields}, (8, 8, 4), 0)
  shapes = weights.flatten(jax.eval_shape(lambda: init_params(module, jax.random.key(0), (8, 8, 4))))
  order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}
  arrays = {
    f"unet.{name.replace('/', '.')}": np.ones(leaf.shape, np.float32).transpose(order[leaf.ndim])
    for name, leaf in shapes.items()
  }
  kwargs = {"img_resolution": 8, "img_channels": 4, "label_dim": 0, "use_fp16": True, **fields}
  path = write(tmp_path / "file.pkl", arrays, "Precond", kwargs)
  for from_, peer, kind in (("edm", "EDM2", "diffusion"), ("ect", "ECT", "consistency")):
    done = convert.convert(path, tmp_path / from_, from_)
    assert (done.checkpoint.peer, done.checkpoint.kind) == (peer, kind)
    assert weights.load_weights(tmp_path / from_)[1]["kind"] == kind


def test_a_folder_that_does_not_say_its_kind_has_to_be_told(params, tmp_path):
  folder = convert.convert(write(tmp_path / "edm.pkl", theirs(params)), tmp_path / "new").folder
  old = old_folder(folder, tmp_path / "old")
  with pytest.raises(UserError, match="^kind = : expected diffusion or consistency"):
    convert.convert(old, tmp_path / "again")
  assert not (tmp_path / "again").exists()
  convert.convert(old, tmp_path / "again", choices=Choices(kind="diffusion"))
  before, after = (weights.load_weights(place)[1] for place in (folder, tmp_path / "again"))
  differing = {"source", "source_sha256"}
  assert {key: before[key] for key in before if key not in differing} == {
    key: after[key] for key in after if key not in differing
  }


def test_command(params, tmp_path, capsys):
  path = write(tmp_path / "file.pkl", theirs(params))
  assert cli.run(["convert", f"--input={path}", f"--out={tmp_path / 'out'}"]) == 0
  said = capsys.readouterr().out
  assert "parameters of songunet, read as edm" in said and "licence: CC BY-NC-SA 4.0" in said
  assert weights.is_weights_folder(tmp_path / "out")
  assert "kind: diffusion\n" in said


@pytest.mark.slow
def test_command_as_a_process(params, tmp_path):
  path = write(tmp_path / "file.pkl", theirs(params))
  run = lambda *arguments: subprocess.run(
    [sys.executable, "-m", "cm_jax", "convert", *map(str, arguments)],
    capture_output=True,
    text=True,
    timeout=300,
  )
  done = run(f"--input={path}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert weights.is_weights_folder(tmp_path / "out") and "kind: diffusion\n" in done.stdout
  bad = run(f"--input={tmp_path / 'absent'}", f"--out={tmp_path / 'bad'}")
  assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
  assert not (tmp_path / "bad").exists()


def test_bad_flags_are_one_line_that_names_them(params, tmp_path, capsys):
  path = write(tmp_path / "file.pkl", theirs(params))
  old = old_folder(convert.convert(path, tmp_path / "new").folder, tmp_path / "old")
  (tmp_path / "empty").mkdir()
  cases = [
    ([f"--input={old}"], "--kind = : expected diffusion or consistency"),
    ([f"--input={path}", "--kind=gan"], "--kind = gan: expected one of: consistency, diffusion, flow_map"),
    ([f"--input={path}", "--precond=emd"], "--precond = emd: expected 'edm' (did you mean it?)"),
    ([f"--input={path}", "--from=jmc"], "--from = jmc: expected 'jcm' (did you mean it?)"),
    ([f"--input={path}", "--from=openai"], "--from = openai: expected edm, which is what"),
    ([f"--input={path}", "--network=[1]"], "--network = [1]: expected a JSON object such as"),
    (
      [f"--input={tmp_path / 'absent'}"],
      f"--input = {tmp_path / 'absent'}: expected a file that can be read",
    ),
    (
      [f"--input={tmp_path / 'empty'}"],
      f"--input = {tmp_path / 'empty'}: expected a run folder (config.json",
    ),
    ([], "--input = : expected a checkpoint"),
    ([f"--input={path}", "--out="], "--out = : expected the weights folder to write"),
  ]
  for arguments, words in cases:
    assert cli.run(["convert", f"--out={tmp_path / 'out'}", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == "", (words, said)
  assert not (tmp_path / "out").exists()
  assert cli.run(["convert", f"--input={old}", f"--out={tmp_path / 'out'}", "--kind=diffusion"]) == 0
  assert "kind: diffusion\n" in capsys.readouterr().out and load_model(tmp_path / "out").kind == "diffusion"


def test_weights_that_are_there_are_replaced_only_when_asked(params, tmp_path, capsys):
  path, out = write(tmp_path / "file.pkl", theirs(params)), tmp_path / "out"
  command = ["convert", f"--input={path}", f"--out={out}"]
  assert cli.run(command) == 0
  content = lambda: {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()}
  before = content()
  capsys.readouterr()
  assert cli.run(command) == 2
  said = capsys.readouterr()
  assert said.err.count("\n") == 1 and f"--out = {out}" in said.err and "--overwrite" in said.err
  assert content() == before and sorted(entry.name for entry in tmp_path.iterdir()) == ["file.pkl", "out"]
  assert cli.run([*command, "--overwrite"]) == 0 and content() != before
  file = tmp_path / "lpips.safetensors"
  file.write_bytes(b"mine")
  for kind in ("lpips", "inception"):
    assert cli.run(["convert", f"--from={kind}", "--input=none.pth", f"--out={file}"]) == 2
    assert "--overwrite" in capsys.readouterr().err and file.read_bytes() == b"mine"
