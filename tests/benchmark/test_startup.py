"""`benchmark --what=startup`: new processes are timed to their first images, and nothing of them stays."""

import importlib.util
import json
import os
import tempfile

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import load_model
from cm_jax.benchmark import startup
from cm_jax.benchmark.sweep import sampler_of
from cm_jax.errors import UserError
from cm_jax.sampling.generate import generate_all, make_generator
from cm_jax.storage import weights


@pytest.mark.slow
def test_a_sweep_of_new_processes(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
  os.mkdir(tempfile.tempdir)
  out = tmp_path / "startup.json"
  arguments = ["--what=startup", "--model=digits-ict", "--nfe=2", "--batch=3", "--rounds=2", f"--out={out}"]
  assert cli.run(["benchmark", *arguments]) == 0, capsys.readouterr().err
  rows = json.loads(out.read_text())["rows"]
  assert [row["start"] for row in rows] == [startup.COLD, startup.CACHED, startup.EXPORTED]
  for row in rows:
    assert (row["nfe"], row["batch"], len(row["seconds"])) == (2, 3, 2)
    assert 0 < row["low"] <= row["median_seconds"] <= row["high"]
  assert rows[1]["x_cached"] == 1
  assert rows[2]["blob_bytes"] > 1000 and rows[0]["blob_bytes"] is None
  assert os.listdir(tempfile.tempdir) == []


def test_every_cold_process_has_a_cache_of_its_own_and_the_warm_ones_share_one(monkeypatch):
  started = []
  monkeypatch.setattr(
    startup, "_seconds", lambda how, folder, cache, *rest: started.append((how, cache)) or 1.0
  )
  startup.measure(load_model("digits-cd"), 2, [1], 3, blobs=False)
  cold, warm = started[0::2], started[1::2]
  assert len({cache for _, cache in cold}) == 3
  assert {cache for _, cache in warm} == {cold[0][1]}


def test_a_blob_samples_what_the_model_does(tmp_path, monkeypatch, capsys):
  """What the child of a blob runs is the same program: its images are those of `generate_all`."""
  model = load_model("digits-cd")
  info = {**weights.info_of(model), "source_sha256": "", "licence": "yours"}
  weights.save_weights(tmp_path / "weights", model.params, info)
  generator = make_generator(model, sampler_of(model, 2))
  blob = jax.export.export(generator)(model.params, *startup._arguments(5, model.num_classes))
  (tmp_path / startup._BLOB).write_bytes(blob.serialize())
  drawn, block = [], jax.block_until_ready
  monkeypatch.setattr(jax, "block_until_ready", lambda images: drawn.append(block(images)))
  startup.exported(str(tmp_path), 2, 5)
  assert startup._READY in capsys.readouterr().out
  wanted = generate_all(generator, model, 5, batch_size=5)
  np.testing.assert_array_equal(drawn[0], wanted)


def test_without_what_reads_blobs_they_are_left_out(monkeypatch, capsys):
  asked = []
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
  monkeypatch.setattr(startup, "measure", lambda *given: asked.append(given[4]) or [])
  assert cli.run(["benchmark", "--what=startup", "--network=digits8", "--nfe=1"]) == 0
  assert asked == [False]
  assert "pip install flatbuffers" in capsys.readouterr().err


def test_a_child_that_warns_a_lot_is_not_stopped_by_it(tmp_path):
  loud = "__import__('sys').stderr.write('x' * 10**6)"
  program = f"traced = lambda *given: ({loud}, print('{startup._READY}'))"
  (tmp_path / "sitecustomize.py").write_text(f"from cm_jax.benchmark import startup; startup.{program}")
  with pytest.MonkeyPatch.context() as patched:
    patched.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    assert startup._seconds("traced", tmp_path, tmp_path / "cache", 1, 2) > 0


def test_a_child_that_fails_is_told_in_one_line(tmp_path):
  with pytest.raises(UserError, match=r"what = startup: expected a process that samples; it said: .*weights"):
    startup._seconds("traced", tmp_path, tmp_path / "cache", 1, 2)


def test_what_cannot_share_its_device_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  with pytest.raises(UserError, match="what = startup: expected one process on a CPU or GPU"):
    startup.measure(load_model("digits-cd"), 2, [1], 1)
