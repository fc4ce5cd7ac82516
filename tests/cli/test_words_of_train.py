"""What `train` says: a header, a line a log step where there is no terminal, what is next, no memory."""

import json

import jax
import pytest

from cm_jax import cli
from cm_jax.cli import train
from cm_jax.cli.config_flags import our_configs, read_file

CONFIG = """
from tests import tiny

def get_config():
  config = tiny.config(num_steps=5, log_every=2, checkpoint_every=3)
  config.optimizer.warmup_images = 64
  return config
"""


def test_header_lines_and_what_is_next(tmp_path, capsys):
  (tmp_path / "config.py").write_text(CONFIG)
  command = ["train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
  assert cli.run(command) == 0
  said = capsys.readouterr()
  for part in (
    "model: denoising, trains a diffusion model; toy, 161 parameters, float32",
    "data: digits:train, 1,437 images of 8x8x1, labels not used",
    "10 classes",
    "devices: 8 x cpu (data 8, fsdp 1), 2 images at a time on each",
    "length: 5 steps of 16, 80 images of 204,800,000",
    "plan: 4.58e-05 GFLOP an image; memory a device: ",
    "checkpoint: next at step 3, every 3; log every 2",
    f"{tmp_path / 'run'}: trained to step 5",
    "\nwall time 0:00:",
    f"next: python -m cm_jax sample --workdir={tmp_path / 'run'}",
    f"train --workdir={tmp_path / 'run'} --config.run.num_steps=0",
  ):
    assert part in said.out, part
  lines = [line for line in said.err.splitlines() if line.startswith("run: step ")]
  assert [line.split(",")[0] for line in lines] == [f"run: step {step} of 5" for step in (2, 4, 5)]
  assert "\r" not in said.err
  written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  rates = [line["learning_rate"] for line in written]
  assert rates == pytest.approx([3e-3 * min(1, step * 16 / 64) for step in (2, 4, 5)], rel=0.3)
  assert rates[0] < rates[1] and f"learning rate {rates[0]:.3g}" in lines[0]
  assert cli.run(command) == 0
  said = capsys.readouterr()
  assert "trained to step 5, as it was before: there is nothing left to do" in said.out
  assert "model:" not in said.out and "wall time" not in said.out
  assert cli.run([*command, "--config.run.num_steps=6", "--noprogress"]) == 0
  said = capsys.readouterr()
  assert "next at step 6, every 3" in said.out and "5 done" in said.out
  assert "run: step" not in said.err


def test_a_run_at_its_end_is_not_to_go_on(tmp_path, capsys):
  """Of 74 images in batches of 16 it has 5 steps less 6 images, or 4 of 72 and 8 images too many."""
  (tmp_path / "config.py").write_text(CONFIG)
  for images, step in ((74, 5), (72, 4)):
    command = ["train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / str(images)}"]
    more = [f"--config.num_images={images}", "--config.run.num_steps=0", "--noprogress"]
    assert cli.run([*command, *more]) == 0
    said = capsys.readouterr().out
    assert f"trained to step {step}" in said and "next: " in said and "to the run's end" not in said


def test_a_dry_run_says_all_and_writes_nothing(tmp_path, capsys):
  (tmp_path / "config.py").write_text(CONFIG)
  command = ["train", f"--config={tmp_path / 'config.py'}", "--config.noise.rho=5", "--dry_run"]
  assert cli.run([*command, f"--workdir={tmp_path / 'run'}"]) == 0
  said = capsys.readouterr().out
  for line in (
    "model: denoising",
    "--config.noise.rho=5.0",
    "--config.network.width=",
    "--config.batch_size=16",
  ):
    assert line in said
  assert not (tmp_path / "run").exists()
  assert cli.run(["train", "--config=configs/digits_emd.py", f"--workdir={tmp_path / 'run'}"]) == 2
  assert "'configs/digits_edm.py' (did you mean it?)" in capsys.readouterr().err


def test_configs_are_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert read_file("configs/digits_cd.py").init.path == "teacher"
  assert read_file("digits_ict.py").objective.name == "consistency"
  assert set(our_configs()) >= {"cifar10_edm.py", "folder.py"}


@pytest.mark.parametrize(
  "error, amount",
  [
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1500000000 bytes."), "1.5 GB"),
    (MemoryError("Unable to allocate 7.5 GiB for an array with shape (9,)"), "7.5 GiB"),
  ],
)
def test_no_memory_left(capsys, monkeypatch, tmp_path, error, amount):
  def fails(values, *overrides):
    raise error

  monkeypatch.setattr(train, "main", fails)
  assert cli.run(["train", f"--workdir={tmp_path}"]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and f"config.batch_size = out of memory for {amount}" in said
  for remedy in ("config.accumulation", "config.network.remat", "config.network.dtype"):
    assert remedy in said
  monkeypatch.setattr("cm_jax.cli.edit.main", fails)
  assert cli.run(["edit", "--batch_size=7"]) == 2
  assert "--batch_size = 7, out of memory" in capsys.readouterr().err


def test_other_errors_stay_what_they_are(monkeypatch):
  def fails(values):
    raise RuntimeError("a bug")

  monkeypatch.setattr("cm_jax.cli.edit.main", fails)
  with pytest.raises(RuntimeError, match="a bug"):
    cli.run(["edit"])
