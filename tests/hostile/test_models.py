"""model.json, config.json and what lies beside them: absurd sizes and wrong types are one line, and soon."""

import json
import time

import numpy as np
import pytest
import safetensors.numpy

from cm_jax.assembly import load_model
from cm_jax.assembly.components import call
from cm_jax.assembly.models import build_network, model_of
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError
from cm_jax.storage import run
from cm_jax.types import NoiseRange
from tests import tiny
from tests.cli.weights import weights_folder

# of every network a field that makes it huge, and what is needed beside it
ABSURD = [
  *(("songunet", field, value) for field, value in (("num_blocks", 700), ("model_channels", 10**8))),
  *(("adm", field, value) for field, value in (("num_blocks", 10**9), ("channel_mult", [10**6]))),
  *(("edm2", field, value) for field, value in (("model_channels", 2**40), ("channel_mult", [1] * 3000))),
  *(("openai_unet", field, value) for field, value in (("num_res_blocks", 5000), ("model_channels", 2**35))),
  *(("jcm_ncsnpp", field, value) for field, value in (("num_res_blocks", 5000), ("nf", 10**12))),
  *(("dit", field, value) for field, value in (("depth", 10**7), ("hidden_size", 48 * 10**6))),
  *(("toy", field, value) for field, value in (("width", 10**9), ("augment_dim", 10**9), ("width", 1e999))),
]


@pytest.mark.parametrize(("network", "field", "value"), ABSURD)
def test_a_network_that_cannot_be(network, field, value):
  began = time.monotonic()
  with pytest.raises(UserError, match=f"network.{field}") as caught:
    build_network({"name": network, field: value}, "edm", NoiseRange(), (8, 8, 3), 0)
  assert time.monotonic() - began < 5 and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"sigma_data": 1e-320}, "sigma_data"),
    ({"sigma_max": 1e300}, "sigma_max"),
    ({"sigma_min": True}, "sigma_min"),
    ({"sigmas_by_nfe": {"2": [80.0, -0.5]}}, "sigmas_by_nfe"),
    ({"sigmas_by_nfe": {"1": [float("inf")]}}, "sigmas_by_nfe"),
    ({"sigmas_by_nfe": {"0": [1.0]}}, "sigmas_by_nfe"),
    ({"sigmas_by_nfe": {"1": []}}, "sigmas_by_nfe"),
    ({"num_classes": 10**9}, "label_dim|num_classes"),
    ({"image_shape": [10**9, 10**9, 1]}, "image_shape|resolution"),
    ({"image_shape": [8, 8, 10**30]}, "image_shape|integer"),
    ({"network": {"name": {"toy": 1}}}, "network"),
    ({"network": {"name": "toy", "augment_dim": "8"}}, "augment_dim"),
    ({"precond": {"name": ["edm"]}}, "precond"),
    ({"precond": {"name": "boundary", "time_scale": "1"}}, "time_scale"),
    ({"precond": {"name": "iddpm", "M": 10**11}}, "M = "),
    ({"kind": ["consistency"]}, "kind"),
  ],
)
def test_a_model_json_that_cannot_be(tmp_path, change, words):
  folder = weights_folder(tmp_path / "w")
  info = json.loads((folder / "model.json").read_text())
  (folder / "model.json").write_text(json.dumps({**info, **change}))
  with pytest.raises(UserError, match=words):
    load_model(folder)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_told_before_sampling(tmp_path, number):
  folder = weights_folder(tmp_path / "w")
  arrays = dict(safetensors.numpy.load_file(folder / "weights.safetensors"))
  arrays["net/conv2/bias"] = np.full_like(arrays["net/conv2/bias"], number)
  safetensors.numpy.save_file(arrays, folder / "weights.safetensors")
  info = json.loads((folder / "model.json").read_text())
  info.pop("weights_sha256", None)
  (folder / "model.json").write_text(json.dumps(info))
  with pytest.raises(UserError, match="net/conv2/bias = .*finite weights"):
    load_model(folder)


@pytest.mark.parametrize("key", ["network", "data", "run", "noise", "averages", "objective"])
@pytest.mark.parametrize("value", [3, [1], None, True])
def test_a_section_of_config_json_that_is_none(tmp_path, key, value):
  run.write_config(tmp_path, tiny.config())
  stored = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**stored, key: value}))
  with pytest.raises(UserError, match=key):
    run.read_config(tmp_path)


def test_a_stored_config_of_wrong_types_is_told():
  stored = tiny.config().to_dict()
  for section, change in (
    ("data", {"image_shape": 8}),
    ("data", {"image_shape": [8, 8]}),
    ("data", {"image_shape": [8, 8, "1"]}),
    ("network", {"name": "toy", "width": [8]}),
    ("objective", {"name": None}),
    ("noise", {"sigma_data": "0.5"}),
  ):
    damaged = {**stored, "data": {**stored["data"], "image_shape": (8, 8, 1)}}
    damaged[section] = {**damaged[section], **change}
    with pytest.raises(UserError):
      model_of(damaged, {})


def test_fields_of_a_wrong_type_are_told_where_the_component_does_not_ask():
  with pytest.raises(UserError, match=r"x.time_scale = 1: expected a value of type float"):
    call(PRECONDS["boundary"], {"time_scale": "1"}, "x", noise=NoiseRange())
