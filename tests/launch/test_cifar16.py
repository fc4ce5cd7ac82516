"""launch/cifar16.sh with a Python that only makes what its commands would: in order, on from what is kept."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.launch.fake import LAUNCH

_FAKE = """#!/usr/bin/env bash
# the flags as variables; what each command leaves behind
for word in "$@"; do case $word in --*=*) word=${word#--} && declare "${word%%=*}=${word#*=}" ;; esac; done
echo "$*" >>calls
[ "$1" = -m ] || { touch "${@: -1}"; exit; }
case $3 in
  train) [ "$workdir" != "runs/cifar16/$FAKE_STOPS" ] || exit 75
    mkdir -p "$workdir/checkpoints/90" && touch "$workdir/"{config.json,metrics.jsonl,saved.json} ;;
  convert | edit | train-features) mkdir -p "$out" && touch "$out/grid.png"
    echo '{"licence": "yours"}' >"$out/model.json" ;;
  evaluate) mkdir -p "$out/samples" && touch "$out/evaluations.jsonl" "$out/samples/nfe_${nfe:-035}.png" ;;
  search-steps) touch "$model/search_nfe_002.png" ;;
  report) touch runs/cifar16/{report.md,report.json,loss_curves.png} ;;
  compare) touch "$out" "${out%.png}.json" ;;
  *) [ -z "$out" ] || { mkdir -p "$(dirname "$out")" && touch "$out"; } ;;
esac
"""
EDITED = [f"{student}.{task}.png" for student in ("cd", "ect", "sct") for task in ("colorize", "inpaint")]


@pytest.fixture
def place(tmp_path) -> Path:
  """A checkout of the scripts with an environment that is made already, and an archive of images."""
  shutil.copytree(LAUNCH, tmp_path / "launch")
  listed = ("requirements.txt", "setup.cfg", "pyproject.toml")
  for name in listed:
    (tmp_path / name).write_text(name)
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(_FAKE)
  python.chmod(0o755)
  wanted = hashlib.sha256("".join(listed).encode()).hexdigest()
  (tmp_path / ".venv" / "cm_jax-demo").write_text(f"{wanted}  -\n")
  for split in ("train", "test"):
    for name in ("ship", "horse"):
      (tmp_path / "images" / split / name).mkdir(parents=True)
      (tmp_path / "images" / split / name / "0003.jpg").touch()
  with tarfile.open(tmp_path / "a b.tar", "w") as archive:
    for split in ("train", "test"):
      archive.add(tmp_path / "images" / split, split)
  return tmp_path


def script(place: Path, *arguments: str, stops: str = "-") -> subprocess.CompletedProcess:
  environment = {**os.environ, "PYTHON_BASE": sys.executable, "FAKE_STOPS": stops}
  command = ["bash", str(place / "launch" / "cifar16.sh"), *arguments]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def calls(place: Path, command: str) -> list[str]:
  lines = (place / "calls").read_text().splitlines() if (place / "calls").exists() else []
  (place / "calls").unlink(missing_ok=True)
  return [line for line in lines if line.startswith(f"-m cm_jax {command}")]


def flag(lines: list[str], name: str) -> list[str]:
  return [word.partition("=")[2] for line in lines for word in line.split() if word.startswith(f"--{name}=")]


def test_all_of_it_and_again_nothing_is_trained_twice(place):
  done = script(place, f"--archive={place / 'a b.tar'}")
  assert done.returncode == 0, done.stderr
  everything = calls(place, "")
  trained = [line for line in everything if " train " in line]
  assert flag(trained[:1], "config") == ["configs/cifar16_edm.py"] and "weights" not in trained[0]
  begun = {(flag([line], "config")[0], line.split()[-1]) for line in trained[1:]}  # in any order
  assert begun == {
    ("configs/cifar16_cd.py", "--teacher=runs/cifar16/weights/edm"),
    ("configs/cifar16_ect.py", "--init=runs/cifar16/weights/edm"),
    ("configs/cifar16_sct.py", "--init=runs/cifar16/weights/edm"),
  }
  results = place / "configs" / "results"
  kept = results / "cifar16"
  found = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
  assert found >= {*EDITED, "report.md", "same_noise.png", "same_noise.json", "edm_nfe_035.png"}
  assert found >= {
    "cd_nfe_2.png",
    "features/model.json",
    "ect/evaluations.jsonl",
    "edm/metrics.jsonl",
  }
  assert flag([line for line in everything if "search" not in line], "nfe") == ["1", "2"] * 3 + ["1,2"]
  weights = results / "weights" / "cifar16-sct"
  assert [path.name for path in weights.iterdir()] == ["model.json"]
  assert {"sct_grid.png", "sct_search_nfe_002.png"} <= found
  assert (weights / "model.json").read_text() == '{"licence": "Apache-2.0"}\n'
  assert not list(kept.rglob("checkpoints"))  # of runs that are done the weights are kept
  # elsewhere: what is kept is taken, and no training is begun again
  shutil.rmtree(place / "runs")
  assert script(place, f"--archive={place / 'a b.tar'}").returncode == 0
  again = calls(place, "")
  assert flag(again, "model")  # measured again, but
  # nothing trained, nor the classifier, by which others of these runs were measured, and no level searched
  assert not [line for line in again if line.split()[2] in ("train", "train-features", "search-steps")]
  assert (place / "runs" / "cifar16" / "weights" / "cd" / "model.json").exists()


def test_a_run_that_was_stopped_is_kept_and_goes_on_elsewhere(place):
  stopped = script(place, f"--archive={place / 'a b.tar'}", stops="ect")
  made = calls(place, "")
  assert stopped.returncode != 0 and not [line for line in made if " evaluate " in line]
  assert not [line for line in made if " convert " in line and "/ect" in line]
  runs, kept = place / "runs" / "cifar16", place / "configs" / "results" / "cifar16"
  for folder in (runs / "sct", runs / "weights" / "sct"):  # begun before the other stopped, or not
    shutil.rmtree(folder, ignore_errors=True)
  for step in (8, 40, 9):
    (runs / "ect" / "checkpoints" / str(step)).mkdir(parents=True)
  (runs / "ect" / "checkpoints" / "41.orbax-checkpoint-tmp").mkdir()
  (runs / "ect" / "saved.json").touch()
  (kept / "ect" / "checkpoints" / "7").mkdir(parents=True)
  assert script(place, "--keep=yes").returncode == 0
  assert [path.name for path in (kept / "ect" / "checkpoints").iterdir()] == ["40"]
  assert (kept / "ect.png").exists() and (kept / "loss_curves.png").exists() and not (kept / "sct").exists()
  weights = kept.parent / "weights"
  assert sorted(path.name for path in weights.iterdir()) == ["cifar16-cd", "cifar16-edm"]
  calls(place, "")
  shutil.rmtree(runs)
  assert script(place, f"--archive={place / 'a b.tar'}").returncode == 0
  trained = flag(calls(place, "train "), "config")
  assert sorted(trained) == ["configs/cifar16_ect.py", "configs/cifar16_sct.py"]
  assert (runs / "ect" / "checkpoints" / "40").is_dir()


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((), "cifar16.sh: missing: --archive, a tar of train/CLASS/*.jpg and test/CLASS/*.jpg"),
    (("--keep=yes",), "cifar16.sh: runs/cifar16: expected a run with a checkpoint to keep"),
    (("--keep=maybe",), "cifar16.sh: --keep = maybe: expected yes or no"),
    (("--archive=x", "--kepe=yes"), "cifar16.sh: --kepe = yes: expected one of: --archive --keep"),
    (("--archive=x", "--", "y"), "cifar16.sh: y: expected nothing behind a --"),
  ],
)
def test_what_is_missing_or_unknown_is_one_line_before_anything_is_made(place, arguments, said):
  done = script(place, *arguments)
  assert (done.returncode, done.stderr.strip()) == (2, said)
  assert not (place / "runs").exists() and not (place / "calls").exists()


def test_a_dry_run_makes_nothing(place):
  done = script(place, "--archive=nowhere.tar", "--dry-run")
  assert done.returncode == 0, done.stderr
  assert "tar -xf nowhere.tar" in done.stdout and "--task=inpaint" in done.stdout
  assert not (place / "runs").exists() and not (place / "calls").exists()
