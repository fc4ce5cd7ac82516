"""Commands that a signal stops in the middle: they say so, leave nothing half-written, and the same command
goes on to what it would have been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm_jax.cli import run
from cm_jax.storage import digests
from tests.cli.weights import weights_folder

REPO = Path(__file__).parents[2]
SLOW_SAMPLE = """
import sys, time
from cm_jax import cli
from cm_jax.storage.samples import SampleStore

write = SampleStore._write_shard

def slowly(self, start, images):
  write(self, start, images)
  time.sleep(0.5)

SampleStore._write_shard = slowly
sys.exit(cli.run(sys.argv[1:]))
"""
# The moments: while the input is read; with half of the weights in the place beside; with all but model.json.
SLOW_CONVERT = """
import sys, time
import safetensors.numpy
from cm_jax import cli
from cm_jax.storage import weights, whole

def at(moment):
  if moment == sys.argv[1]:
    print("now", flush=True)
    time.sleep(60)

load, save, write = safetensors.numpy.load_file, safetensors.numpy.save_file, whole.write

def loading(*given):
  at("reading")
  return load(*given)

def saving(arrays, path, about=None):
  save(arrays, path, about)
  with open(path, "r+b") as file:
    file.truncate(file.seek(0, 2) // 2)
  at("writing")
  save(arrays, path, about)

def described(path, content):
  at("describing")
  write(path, content)

safetensors.numpy.load_file, safetensors.numpy.save_file, whole.write = loading, saving, described
sys.exit(cli.run(sys.argv[2:]))
"""


def begun(script: str, *arguments: str) -> subprocess.Popen:
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  environment = {**os.environ, "PYTHONPATH": str(REPO)}
  return subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, text=True, **pipes)


def content(path: Path) -> object:
  return digests.of_folder(path) if path.is_dir() else path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "number", "status"),
  [("x.npz", "SIGTERM", 75), ("x.zip", "SIGTERM", 75), ("folder", "SIGTERM", 75), ("y.zip", "SIGINT", 130)],
)
def test_sample_goes_on_to_the_identical_result(tmp_path, name, number, status):
  model = weights_folder(tmp_path / "model")
  arguments = lambda out: (
    *("sample", f"--model={model}", f"--out={tmp_path / out}", "--num=1870", "--batch_size=55"),
    *("--seed=3", "--sigmas=80,0.9"),
  )
  process = begun(SLOW_SAMPLE, *arguments(name))
  part, deadline = tmp_path / f".{name}.part", time.monotonic() + 120
  while len(list(part.glob("shard_*"))) < 2 and time.monotonic() < deadline:
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.02)
  process.send_signal(getattr(signal, number))
  said = process.communicate(timeout=60)[1]
  word = "interrupted" if number == "SIGINT" else f"stopped by {number}"
  assert process.returncode == status and said.splitlines()[-1].endswith(
    f"cm_jax sample: {word}; the same command goes on"
  ), said
  assert not (tmp_path / name).exists() and "Traceback" not in said
  before = {path.name: path.stat().st_mtime_ns for path in part.glob("shard_*")}
  assert 2 <= len(before) < 4  # of 1870 images in shards of 495
  assert run(list(arguments(name))) == 0
  assert run(list(arguments(f"whole_{name}"))) == 0
  assert content(tmp_path / name) == content(tmp_path / f"whole_{name}")
  assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("moment", "number", "status"),
  [("reading", "SIGINT", 130), ("writing", "SIGTERM", 75), ("describing", "SIGINT", 130)],
)
@pytest.mark.parametrize("replaces", [False, True])
def test_convert_leaves_what_was_there(tmp_path, moment, number, status, replaces):
  model, out = weights_folder(tmp_path / "model"), tmp_path / "made" / "out"
  if replaces:
    weights_folder(out, kind="diffusion")
  before = content(out) if replaces else None
  arguments = ["convert", f"--input={model}", f"--out={out}", "--overwrite"]
  process = begun(SLOW_CONVERT, moment, *arguments)
  assert process.stdout.readline() == "now\n", process.communicate()[1]
  process.send_signal(getattr(signal, number))
  said = process.communicate(timeout=60)[1]
  assert process.returncode == status and "cm_jax convert: " in said and "Traceback" not in said, said
  assert (content(out) if out.exists() else None) == before
  assert not list(tmp_path.glob("made/.*"))
  assert run(arguments) == 0
  assert digests.of_file(out / "weights.safetensors") == digests.of_file(model / "weights.safetensors")
