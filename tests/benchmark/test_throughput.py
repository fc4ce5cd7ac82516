"""`benchmark --what=sampling,train,compile`: what a row holds, what is measured, and that nothing else is."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.benchmark import chart, subjects, sweep, throughput
from cm_jax.benchmark.cases import WORKLOADS, Workload
from cm_jax.errors import UserError
from cm_jax.types import NoiseRange

TOY = Workload({"name": "toy", "width": 4}, image_shape=(4, 4, 1), batch_size=8)


@dataclasses.dataclass(frozen=True)
class Known:
  """What `sampler_of` asks of a model."""

  noise: NoiseRange = dataclasses.field(default_factory=lambda: NoiseRange(sigma_max=7.0))
  sigmas_by_nfe: dict = dataclasses.field(default_factory=lambda: {2: (7.0, 0.7)})
  image_shape: tuple = (4, 4, 1)
  renoise: None = None
  clip: None = None


@pytest.mark.parametrize(
  ("nfe", "name", "levels"), [(1, "Multistep", (7.0,)), (2, "Multistep", (7.0, 0.7)), (35, "Heun", None)]
)
def test_sampler_of_so_many_evaluations(nfe, name, levels):
  sampler = sweep.sampler_of(Known(), nfe)
  assert (type(sampler).__name__, sampler.nfe) == (name, nfe)
  assert levels is None or tuple(sampler.sigmas) == levels


def test_even_numbers_without_tuned_levels_follow_the_grid():
  sampler = sweep.sampler_of(Known(), 4)
  assert sampler.nfe == 4 and sampler.sigmas[0] == 7.0 and min(sampler.sigmas) > Known().noise.sigma_min


def variant(batch, call=lambda: None, beside=None):
  about = {"what": "sampling", "dtype": "float32", "devices": 1, "batch": batch, "nfe": 1, "sampler": "heun"}
  return sweep.Variant(about, call, batch, 1e6, None, 0.5, None, beside or {})


def test_rows_are_medians_of_the_same_rounds(monkeypatch):
  timings = {throughput.MATMUL: [1.0, 1.0, 4.0, 1.0, 1.0], "0 cm_jax": [2.0, 4.0, 8.0, 2.0, 2.0]}
  timings |= {"0 other": [6.0, 8.0, 8.0, 6.0, 6.0], "1 cm_jax": [1.0] * 5}
  asked = []

  def timed(programs, rounds, progress):
    asked.append((list(programs), rounds))
    return {name: list(values) for name, values in timings.items()}

  monkeypatch.setattr(throughput, "in_turns", timed)
  rows = throughput.measure([variant(8, beside={"other": lambda: None}), variant(1)], 5, peak=1e6)
  assert asked == [([throughput.MATMUL, "0 cm_jax", "0 other", "1 cm_jax"], 5)]
  ours, other, single = rows
  assert [row["by"] for row in rows] == ["cm_jax", "other", "cm_jax"]
  assert (ours["images_per_second"], ours["ratio"], other["ratio"]) == (4.0, 1.0, 3.0)
  assert ours["images_per_second_quartiles"] == [2.0, 4.0]
  assert ours["flops_per_second"] == 5e5 and ours["mfu"] == 0.5 and "compile_seconds" not in other
  assert single["p50_ms"] <= single["p99_ms"] and single["latencies"] > 1 and "p50_ms" not in ours
  assert not ours["noisy"] and throughput.noisy(rows) is None


def test_a_noisy_machine_is_said_to_be(monkeypatch):
  timed = lambda programs, rounds, progress: {name: [1.0, 2.0, 3.0] for name in programs}
  monkeypatch.setattr(throughput, "in_turns", timed)
  rows = throughput.measure([variant(8)], 3)
  assert rows[0]["noisy"] and "noisy" in (throughput.noisy(rows) or "")


@pytest.mark.slow
def test_the_picture(tmp_path):
  rows = [
    {"what": "sampling", "by": by, "dtype": "float32", "devices": 1, "nfe": nfe, "batch": batch}
    | {"images_per_second": 100.0 * batch / nfe, "images_per_second_quartiles": [90.0, 110.0 * batch]}
    for by, nfe, batch in itertools.product(("cm_jax", "torch eager"), (1, 35), (1, 8))
  ]
  chart.save(rows, tmp_path / "rates.png")
  assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_spreads_evenly_over_devices_that_are_there():
  with pytest.raises(UserError, match="devices = 9"):
    sweep.mesh_of(9)
  with pytest.raises(UserError, match="batch = 6"):
    sweep.check_spread(6, 4)


@pytest.mark.slow
def test_the_command_over_a_sweep(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(WORKLOADS, "small", TOY)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
  out, png = tmp_path / "rates.jsonl", tmp_path / "rates.png"
  before = jax.config.jax_compilation_cache_dir
  arguments = ["--what=sampling,train,compile", "--network=small", "--batch=8", "--nfe=1,3", "--rounds=1"]
  arguments += ["--devices=1,4", f"--out={out}", f"--png={png}"]
  assert cli.run(["benchmark", *arguments]) == 0, capsys.readouterr().err
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  swept = [(row["what"], row["devices"], row["nfe"]) for row in rows[:6]]
  assert swept[:4] == [("sampling", *rest) for rest in itertools.product((1, 4), (1, 3))]
  assert swept[4:] == [("train", 1, None), ("train", 4, None)]
  assert all(row["images_per_second"] > 0 and row["flops"] > 0 and row["commit"] for row in rows[:6])
  assert [row["program"] for row in rows[6:]] == ["train step", "sampling, 1 NFE", "sampling, 3 NFE"]
  assert all(row["cold_seconds"] > 0 and row["cached_seconds"] > 0 for row in rows[6:])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.jsonl", "rates.png"]
  assert before == jax.config.jax_compilation_cache_dir


@pytest.mark.slow
def test_flops_do_not_depend_on_how_layers_are_computed():
  workload = Workload(
    {"name": "toy", "width": 16}, image_shape=(8, 8, 16), batch_size=4
  )  # wide enough for the forms for CPUs
  counts = []
  for kernels in ("plain", "cpu"):
    chosen = dataclasses.replace(workload, network={**workload.network, "kernels": kernels})
    with pytest.MonkeyPatch.context() as patched:
      patched.setitem(WORKLOADS, "small", chosen)
      (found,) = sweep.training(subjects.of_network("small"), [4])
    counts.append((found.flops, found.xla_flops))
  assert counts[0] == counts[1] and counts[0][0] == pytest.approx(counts[0][1], rel=0.1)


@pytest.mark.slow
def test_a_config_and_a_model_are_measured_as_themselves(tmp_path):
  from cm_jax.config import default

  config = default()
  config.data.image_shape, config.network = (4, 4, 1), {"name": "toy", "width": 4}
  subject = subjects.of_config(config, "mine.py")
  assert subject.model.image_shape == (4, 4, 1) and subject.workload.network["width"] == 4
  in_bfloat16 = subject.with_network(dtype="bfloat16")
  x, sigma = np.ones((2, 4, 4, 1), np.float32), np.ones(2, np.float32)
  outputs = [one.model.preconditioned(one.model.params)(x, sigma) for one in (subject, in_bfloat16)]
  assert in_bfloat16.model.network["dtype"] == "bfloat16"
  np.testing.assert_allclose(*outputs, atol=0.05)
  assert not np.array_equal(*outputs)
