"""`benchmark --what=writing`: every format is really written, and the rows compare equally many images."""

import json

import jax
import pytest

from cm_jax import cli
from cm_jax.benchmark import sampling
from cm_jax.benchmark.cases import WORKLOADS, Workload
from cm_jax.storage.samples import SampleStore

TOY = Workload({"name": "toy"}, image_shape=(4, 4, 1), batch_size=8)


@pytest.mark.slow
def test_every_format_is_written_whole_in_every_round(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(WORKLOADS, "small", TOY)
  # leave the tests' own
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
  finish, finished = SampleStore.finish, []

  def spied(self, labels):
    finish(self, labels)
    finished.append((self._out.suffix, self._out.exists(), self._num))

  monkeypatch.setattr(SampleStore, "finish", spied)
  out = tmp_path / "sampling.json"
  assert (
    cli.run(["benchmark", "--what=writing", "--network=small", "--rounds=1", "--num=60", f"--out={out}"]) == 0
  )
  assert {suffix for suffix, _, _ in finished} == {".npz", ".zip", ""}
  assert all(there and num == 64 for _, there, num in finished)
  rows = json.loads(out.read_text())["rows"]
  assert [row["name"] for row in rows] == [sampling.ALONE, *sampling.OUTPUTS]
  assert rows[0]["ratio"] == 1 and rows[0]["flops_per_second"] > 0
  assert all(row["images_per_second"] > 0 and row["ratio"] > 0 for row in rows)
  assert "| to .npz" in capsys.readouterr().out


def test_bad_noise_levels_are_refused(capsys):
  assert cli.run(["benchmark", "--what=writing", "--network=small", "--sigmas=0.8,80"]) == 2
  assert "--sigmas = 0.8,80" in capsys.readouterr().err
