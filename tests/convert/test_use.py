"""Converted weights do what weights do: they sample, are evaluated, start a run, and teach."""

import json

import numpy as np
import pytest

from cm_jax import convert
from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.training import loop
from tests import tiny
from tests.convert import writers
from tests.convert.test_convert import theirs
from tests.convert.test_inferred import random_params

FIELDS = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """The weights folder of an EDM snapshot for the digits."""
  folder = tmp_path_factory.mktemp("teacher")
  kwargs = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 0,
    "model_type": "SongUNet",
    **{k: list(v) if isinstance(v, tuple) else v for k, v in FIELDS.items()},
  }
  (folder / "edm.pkl").write_bytes(
    writers.snapshot("EDMPrecond", kwargs, theirs(random_params("songunet", FIELDS, 8, channels=1)))
  )
  return convert.convert(folder / "edm.pkl", folder / "weights").folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_samples(teacher, tmp_path, cache):
  assert (
    run(
      [
        "sample",
        f"--model={teacher}",
        "--num_steps=2",
        "--num=4",
        "--batch_size=4",
        f"--out={tmp_path / 'x.npz'}",
      ]
    )
    == 0
  )
  images = np.load(tmp_path / "x.npz")["arr_0"]
  assert images.shape == (4, 8, 8, 1) and images.dtype == np.uint8


@pytest.mark.slow
def test_is_evaluated(teacher, tmp_path, cache):
  assert run(["train-features", "--source=digits", f"--out={tmp_path / 'features'}"]) == 0
  command = [
    "evaluate",
    f"--model={teacher}",
    "--num_steps=2",
    "--num=100",
    f"--features={tmp_path / 'features'}",
    "--reference=digits",
    f"--out={tmp_path / 'out'}",
  ]
  assert run(command) == 0
  records = [json.loads(line) for line in (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()]
  distances = [record for record in records if record["metric"] == "fd_digits"]
  assert [record["nfe"] for record in distances] == [3] and np.isfinite(distances[0]["value"])


@pytest.mark.slow
def test_teaches_and_starts_a_run(teacher, tmp_path):
  config = tiny.config(tiny.CD, num_steps=20, checkpoint_every=20)
  config.network = {"name": "songunet", **FIELDS}
  config.teacher.path = str(teacher)
  config.init.path = str(teacher)
  experiment = build(config)
  assert experiment.teacher is not None and experiment.initial_params is not None
  state = loop.train(experiment, tmp_path / "run", [], progress=False)
  assert int(state.step) == 20
  losses = [
    json.loads(line)["loss"]
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    if "loss" in line
  ]
  assert len(losses) == 20 and np.isfinite(losses).all()
  # and the run converts the same way
  assert (
    run(["convert", f"--input={tmp_path / 'run'}", f"--out={tmp_path / 'student'}", "--average=ema"]) == 0
  )
  assert (
    run(
      [
        "sample",
        f"--model={tmp_path / 'student'}",
        "--num=2",
        "--batch_size=2",
        f"--out={tmp_path / 'x.npz'}",
      ]
    )
    == 0
  )
