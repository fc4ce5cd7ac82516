"""evaluate from the command line: images and models against references of any form, several of each in one
call, on several devices and processes, stopped and going on."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from cm_jax.assembly import build
from cm_jax.cli import run
from cm_jax.cli.flags import define_model, read_samplers
from cm_jax.data.sources import images, labels, open_source
from cm_jax.errors import UserError
from cm_jax.evaluation.features import save_features, train_features
from cm_jax.training import loop
from tests import tiny
from tests.sampling.test_choose import model

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run with two checkpoints, features, and images."""
  path = tmp_path_factory.mktemp("forms")
  loop.train(build(tiny.config(tiny.CT, num_steps=4, checkpoint_every=2)), path / "run", progress=False)
  source = open_source("digits")
  save_features(path / "features", train_features(images(source), labels(source), seed=0, num_steps=5))
  np.savez(path / "x.npz", images(source)[:200])
  return path


def records(place) -> list[dict]:
  return [json.loads(line) for line in (place / "evaluations.jsonl").read_text().splitlines()]


def evaluate(folder, *arguments: str) -> int:
  return run(["evaluate", f"--features={folder / 'features'}", "--noprogress", *arguments])


@pytest.mark.slow
def test_images_against_what_was_made_of_a_source(folder, tmp_path, capsys):
  made = tmp_path / "digits.npz"
  flags = [f"--features={folder / 'features'}", "--source=digits", f"--out={made}"]
  assert run(["evaluate", "reference", *flags]) == 0, capsys.readouterr().err
  assert f"{made}: 64 features of 1,797 images" in capsys.readouterr().out
  assert run(["evaluate", "reference", f"--check={made}", *flags[:1]]) == 0
  capsys.readouterr()
  x = f"--images={folder / 'x.npz'}"
  assert evaluate(folder, x, f"--reference={made}", "--metrics=fd") == 0, capsys.readouterr().err
  by_file = capsys.readouterr().out
  assert "not recorded (--out=FOLDER does): 1 image set measured" in by_file and "sha256" in by_file
  out = tmp_path / "out"
  assert evaluate(folder, x, "--reference=digits", "--metrics=fd", f"--out={out}") == 0
  found = records(out)
  assert [record["metric"] for record in found] == ["fd_digits_floor", "fd_digits"]
  assert found[1]["n"] == 200 and found[1]["samples"].endswith("x.npz")
  assert f"{found[1]['value']:.3f}" in by_file
  capsys.readouterr()
  assert evaluate(folder, x, "--reference=digits", "--metrics=fd", f"--out={out}") == 0
  assert "0 image sets measured, 1 as before" in capsys.readouterr().out


@pytest.mark.slow
def test_several_of_each_in_one_call_skips_what_is_recorded(folder, tmp_path, capsys):
  shared = ["--sigmas=80", "--metrics=fd", "--num=30", f"--model={folder / 'run'}", f"--out={tmp_path}"]
  assert evaluate(folder, "--average=ema,params", "--seeds=0,5", "--sigmas=80,1", *shared) == 0
  told = capsys.readouterr().out
  assert "8 samplers measured" in told
  found = [record for record in records(tmp_path) if record["metric"] == "fd_digits"]
  kinds = {(r["average"], r["seed"], r["nfe"], r["step"]) for r in found}
  assert kinds == {(a, s, n, 4) for a in ("ema", "params") for s in (0, 5) for n in (1, 2)}
  one = [r["value"] for r in found if (r["average"], r["nfe"]) == ("ema", 1)]
  line = next(line for line in told.splitlines() if line.startswith("fd_digits, 1 NFE, seeds 0, 5: "))
  assert line.endswith(f"mean {sum(one) / 2:.4g}, min {min(one):.4g}")
  assert "average" in told and "seed" in told
  assert evaluate(folder, "--all-checkpoints", "--average=ema,params", *shared) == 0
  assert "2 samplers measured, 2 as before" in capsys.readouterr().out
  assert {r["step"] for r in records(tmp_path) if r["metric"] == "fd_digits"} == {2, 4}


def test_several_numbers_of_evaluations_in_one_call():
  values = flags.FlagValues()
  define_model(values)
  values(["evaluate", "--nfe=2", "--nfe=1"])
  tuned = model(sigmas_by_nfe={2: (80.0, 1.5)})
  assert [sampler.sigmas for sampler in read_samplers(values, tuned, ())] == [(80.0, 1.5), (80.0,)]
  with pytest.raises(UserError, match="^--nfe = 2: expected neither --sigmas"):
    read_samplers(values, tuned, ("80",))


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--images=x", "--workdir=y"], "--images = x: expected either images or a model"),
    (["--images=nowhere", "--reference=digits"], "--images = nowhere: expected a folder, .zip"),
    (["--workdir=RUN", "--seeds=0,0"], "--seeds = 0,0: expected numbers from 0"),
    (["--workdir=RUN", "--reference=digit"], "--reference = digit: expected"),
    (["--workdir=RUN", "--sigmas=0.8,80"], "--sigmas = 0.8,80: expected"),
    (["--workdir=RUN", "--metrics=fdd"], "--metrics = fdd: expected 'fd' (did you mean it?)"),
    (["--workdir=RUN", "--convention=EDM"], "--convention = EDM: expected"),
    (["--workdir=RUN", "--resize=pil-bicubic"], "--resize = pil-bicubic: expected none: "),
    (["--workdir=RUN", "--kernel=rbff"], "--kernel = rbff: expected 'rbf' (did you mean it?)"),
    (["--workdir=RUN", "--kernel_width=0"], "--kernel_width = 0.0: expected a positive number"),
    (["--workdir=RUN", "--all_checkpoints", "--step=2"], "--step = 2: expected no step beside"),
    (
      ["--workdir=RUN", "--reference=cifar10-edm"],
      "--reference = cifar10-edm: expected the path of a file: get",
    ),
    (["reference", "--source=digits", "--out=x.txt"], "--out = x.txt: expected a file to write, FILE.npz"),
    (["reference", "--check=x.npz"], "--check = x.npz: expected a file that is there"),
    (["references"], "command evaluate = references: expected 'reference' (did you mean it?)"),
  ],
)
def test_bad_flags_are_one_line(folder, capsys, arguments, said):
  place = str(folder / "run")
  given = [argument.replace("RUN", place) for argument in arguments]
  before = sorted(path.name for path in (folder / "run").iterdir())
  subcommand = given[:1] if not given[0].startswith("-") else []
  features = [f"--features={folder / 'features'}"]
  assert run(["evaluate", *subcommand, *features, *given[len(subcommand) :]]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1
  assert sorted(path.name for path in (folder / "run").iterdir()) == before


def start(folder, out, *arguments: str, to=subprocess.PIPE, **variables: str) -> subprocess.Popen:
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **variables}
  command = [
    *(sys.executable, "-m", "cm_jax", "evaluate", f"--model={folder / 'run'}", f"--out={out}"),
    *(f"--features={folder / 'features'}", "--num=600", "--batch_size=64", "--sigmas=80", *arguments),
  ]
  pipe = {"stdout": to, "stderr": subprocess.STDOUT, "text": True}
  return subprocess.Popen(command, cwd=REPO, env=environment, **pipe)


def values(place) -> dict[str, float]:
  return {r["metric"]: r["value"] for r in records(place) if r["metric"] != "images_per_second"}


@pytest.mark.slow
def test_devices_and_processes_measure_the_same(folder, tmp_path):
  job = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:29541", "JAX_NUM_PROCESSES": "2"}
  eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  runs = [start(folder, tmp_path / "one"), start(folder, tmp_path / "eight", **eight)]
  for process in runs:
    assert process.wait(240) == 0, process.stdout.read()
  pair = [start(folder, tmp_path / "two", JAX_PROCESS_ID=str(i), **job) for i in range(2)]
  for process in pair:
    assert process.wait(240) == 0, process.stdout.read()
  one = values(tmp_path / "one")
  assert set(one) == {"fd_digits_floor", "nn_distance_real", "fd_digits", "class_entropy", "nn_distance"}
  for other in ("eight", "two"):
    assert values(tmp_path / other) == pytest.approx(one, rel=1e-6), other


@pytest.mark.slow
def test_a_terminated_evaluation_goes_on(folder, tmp_path):
  long = ("--metrics=fd", "--num=40000")
  terminal, its_end = pty.openpty()  # where the bar shows every step
  termios.tcsetwinsize(its_end, (24, 120))
  process = start(folder, tmp_path / "run", *long, to=its_end)
  os.close(its_end)
  place = tmp_path / "run" / ".evaluating"
  said = ""
  while not re.search(r"\b[1-9]\d*/40000\b", said):  # it draws by then
    said += os.read(terminal, 1 << 12).decode(errors="replace")
  process.send_signal(signal.SIGTERM)
  with contextlib.suppress(OSError):  # the end of a terminal
    while more := os.read(terminal, 1 << 12):
      said += more.decode(errors="replace")
  os.close(terminal)
  process.wait(60)
  assert process.returncode == 75 and "the same command goes on" in said
  assert [path.name for path in place.rglob("state")] == ["state"], said
  assert not (tmp_path / "run" / "evaluations.jsonl").exists()
  process = start(folder, tmp_path / "run", *long)
  said = process.communicate(timeout=240)[0]
  assert process.returncode == 0, said
  assert not place.exists() and "| 40,000" not in said
  process = start(folder, tmp_path / "whole", *long)
  assert process.wait(240) == 0
  assert values(tmp_path / "run") == pytest.approx(values(tmp_path / "whole"), rel=1e-6)
