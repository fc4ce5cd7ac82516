"""The runner itself: it fails what differs, what is missing and what it does not know, and says so."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import runner

REPO = Path(__file__).parents[2]
TOL = {
  "float32": {"default": 1e-6, "by_key": [["snr", 1e-3], ["^weight_", 1e-5]]},
  "float64": {"default": 1e-12, "by_key": []},
}


def write(folder: Path, name: str, meta: dict, **arrays: np.ndarray) -> runner.Case:
  (folder / name).mkdir()
  (folder / name / "meta.json").write_text(json.dumps({"tol": TOL, **meta}))
  np.savez(folder / name / "io.npz", **arrays)
  return runner.Case(folder / name)


def scalings(folder: Path, name: str = "C_scalings", **outputs: np.ndarray) -> runner.Case:
  sigma = np.array([0.5, 2.0])
  kwargs = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
  return write(
    folder,
    name,
    {"cls": "KarrasDenoiser", "kwargs": kwargs},
    in_sigma=sigma,
    **{f"out_{key}": value for key, value in outputs.items()},
  )


def verdicts(case: runner.Case) -> dict[str, bool | None]:
  return {row.what: row.passed for row in runner.run_case(case)}


def test_right_and_wrong_numbers(tmp_path):
  case = scalings(
    tmp_path,
    std_c_in_f64=(np.array([0.5, 2.0]) ** 2 + 0.25) ** -0.5,
    std_c_out_f64=np.array([0.3, 0.4]),
    weight_uniform_f64=np.ones(3),
  )
  assert verdicts(case) == {"std_c_in": True, "std_c_out": False, "weight_uniform": False}


def test_an_output_nobody_computes_fails_by_name(tmp_path):
  case = scalings(tmp_path, std_c_in_f64=(np.array([0.5, 2.0]) ** 2 + 0.25) ** -0.5, lyapunov_f64=np.ones(2))
  rows = list(runner.run_case(case))
  assert [(row.what, row.passed, row.note) for row in rows][-1] == ("lyapunov", False, "not computed")


def test_an_unknown_case_fails_by_name(tmp_path):
  (row,) = runner.run_case(write(tmp_path, "A_new", {"cls": "TransformerOfTomorrow"}, out_y=np.ones(2)))
  assert (row.case, row.what, row.passed) == ("A_new", "TransformerOfTomorrow", False)


def test_the_float64_numbers_are_the_reference_and_the_last_pattern_wins(tmp_path):
  case = scalings(tmp_path, weight_snr_f32=np.ones(2), weight_snr_f64=np.ones(2), snr_f32=np.ones(2))
  assert case.outputs() == {"weight_snr": "out_weight_snr_f64", "snr": "out_snr_f32"}
  assert [case.tolerance(key) for key in case.outputs().values()] == [1e-5, 1e-3]
  assert case.tolerance("out_snr_f32", "float64") == 1e-12


def test_choice_of_cases(tmp_path):
  for name, cls in {
    "A_x": "EDMPrecond",
    "G_a": "NCSNpp",
    "G_b": "get_consistency_loss_fn",
    "G_c": "get_onestep_sampler",
    "G_d": "New",
  }.items():
    write(tmp_path, name, {"cls": cls, "kwargs": {}})
    np.savez(tmp_path / name / "weights.npz")
  chosen = lambda *only: [case.name for case in runner.cases(tmp_path, only)]
  assert chosen() == ["A_x", "G_a", "G_b", "G_c", "G_d"]
  assert chosen("A") == ["A_x"]
  # what nobody knows is in every section, so that it cannot drop out unseen
  assert chosen("G.networks") == ["G_a", "G_d"]
  assert chosen("A", "G.losses") == ["A_x", "G_b", "G_d"]


@pytest.mark.parametrize(
  ("value", "error"), [([1.0, np.inf], 0.0), ([1.0, 5.0], np.inf), ([np.nan, np.inf], np.nan)]
)
def test_what_is_infinite_must_be_so_in_both(value, error):
  np.testing.assert_equal(runner.relative_error(np.array(value), np.array([1.0, np.inf])), error)


@pytest.mark.slow
def test_command(tmp_path):
  scalings(tmp_path, std_c_in_f64=(np.array([0.5, 2.0]) ** 2 + 0.25) ** -0.5)
  run = lambda *arguments: subprocess.run(
    [sys.executable, "-m", "tests.golden", *map(str, arguments)],
    cwd=REPO,
    capture_output=True,
    text=True,
    timeout=300,
  )
  done = run(tmp_path, "--only=C")
  assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 passed, 0 failed"), (
    done.stdout + done.stderr
  )
  write(tmp_path, "C_new", {"cls": "New"}, out_y=np.ones(1))
  done = run(tmp_path, "--only=C")
  assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 passed, 1 failed")
  assert "C_new" in done.stdout and "nothing here handles this case" in done.stdout
  done = run(tmp_path / "absent")
  assert done.returncode == 2 and done.stdout.startswith("not run: there is no folder")
