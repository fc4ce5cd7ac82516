"""What a train step costs relative to plain denoising, by XLA's FLOP count: the same on every machine."""

import dataclasses
import json

import jax
import pytest

from cm_jax import cli
from cm_jax.benchmark.cases import CASES, WORKLOADS, Workload, case_of
from cm_jax.benchmark.objectives import flops, forward, train_step
from cm_jax.objectives import OBJECTIVES
from cm_jax.objectives.denoising import Denoising
from tests.compiling import quick_jit

# Convolutions make up enough of it for the ratios to be within a hundredth of those of the networks that are
# trained.
WORKLOAD = Workload(
  {
    "name": "songunet",
    "model_channels": 32,
    "channel_mult": (1,),
    "num_blocks": 1,
    "attn_resolutions": (),
    "dropout": 0.0,
  },
  (8, 8, 3),
  8,
)
TOY = Workload({"name": "toy", "width": 8}, (4, 4, 1), 4)


def counted(program) -> float:
  count = flops(program.lower().compile(**quick_jit.keywords))
  assert count is not None
  return count


@pytest.fixture(scope="module")
def denoising() -> float:
  return counted(train_step(CASES["denoising"], WORKLOAD, WORKLOAD.batch_size))


@pytest.mark.slow
def test_denoising_is_three_forwards(denoising):
  assert 2.9 < denoising / counted(forward(WORKLOAD, WORKLOAD.batch_size)) < 3.1


# Forward 1, backward 2: a target's forward is a third more, a teacher's too. What a JVP adds to a forward is
# another.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "least", "most"),
  [("ct", 1.3, 1.35), ("cd_heun", 1.9, 2.02), ("sct", 1.3, 1.36), ("scd", 1.6, 1.7)],
)
def test_cost_relative_to_denoising(name, least, most, denoising):
  assert least < counted(train_step(CASES[name], WORKLOAD, WORKLOAD.batch_size)) / denoising <= most


@dataclasses.dataclass(frozen=True)
class Toy(Denoising):
  """An objective that `CASES` does not know."""


@pytest.mark.slow
def test_an_objective_of_no_paper_is_measured_by_its_name(monkeypatch):
  monkeypatch.setitem(OBJECTIVES, "toy_loss", Toy)
  case = case_of("toy_loss")
  assert (case.objective, case.precond) == ({"name": "toy_loss"}, "edm")
  assert counted(train_step(case, TOY, 4)) == counted(train_step(CASES["denoising"], TOY, 4))


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_its_record_and_nothing_else(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(WORKLOADS, "small", TOY)
  # leave the tests' own
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
  out = tmp_path / "costs.json"
  assert (
    cli.run(["benchmark", "--what=objectives", "--network=small", "--only=ct", "--rounds=2", f"--out={out}"])
    == 0
  )
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 5 and len({len(line) for line in lines}) == 1
  assert [line.split("|")[1].strip() for line in lines[2:]] == ["forward", "denoising", "ct"]

  assert list(tmp_path.iterdir()) == [out]
  record = json.loads(out.read_text())
  assert {
    "command",
    "machine",
    "device",
    "versions",
    "commit",
    "seed",
    "batch_size",
    "rounds",
    "config",
  } <= set(record)
  rows = record["rows"]
  assert [row["name"] for row in rows] == ["forward", "denoising", "ct"]
  assert rows[1]["flops_ratio"] == rows[1]["time_ratio"] == 1 and rows[1]["extra_forwards"] == 0
  for row in rows:
    assert row["flops"] > 0 and row["ms"] > 0 and row["images_per_second"] > 0 and len(row["seconds"]) == 2


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--only=cts"], "--only = cts: expected 'ct' (did you mean it?)"),
    (["--what=everything"], "what"),
    (
      ["--out=/no/such/folder/costs.json"],
      "--out = /no/such/folder/costs.json: expected a file in a folder that exists",
    ),
    (["--rounds=0"], "rounds"),
    (["--batch=8,0"], "--batch = 8,0: expected positive whole numbers"),
    (["--nfe=two"], "--nfe = two: expected positive whole numbers"),
    (["--dtype=float16"], "--dtype = float16"),
    (
      ["--config=configs/digits_edm.py", "--model=runs/x"],
      "--config = configs/digits_edm.py: expected either",
    ),
    (["--peak=h1000"], "--peak = h1000"),
  ],
)
def test_bad_input(arguments, message, capsys):
  assert cli.run(["benchmark", *arguments]) == 2
  captured = capsys.readouterr()
  assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
