"""The tutorial of configs/swiss_roll.py: its commands, as they are typed, with few steps; its picture."""

import importlib.util
import shlex
import sys

import numpy as np
import pytest

from cm_jax import cli
from tests.configs.rows import CONFIGS, docstring


@pytest.fixture
def roll(monkeypatch):
  monkeypatch.syspath_prepend(str(CONFIGS))
  import swiss_roll

  return swiss_roll


def front():
  spec = importlib.util.spec_from_file_location("front", CONFIGS.parent / "launch" / "front.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_points_lie_along_the_roll_evenly_and_are_the_same_each_time(roll):
  points = roll.Roll().points
  assert points.shape == (roll.NUM, 2) and points.dtype == np.float32
  assert roll.Roll().fingerprint == roll.Roll().fingerprint
  along = front().place_on_roll(points[:2000])
  assert np.histogram(along, 8, (0, 1))[0].min() > 0.8 * 2000 / 8
  curve = roll.roll(np.sqrt(np.linspace(*np.square(roll.TURNS), 2000)))
  off = np.sqrt(np.square(points[:500, None] - curve[None]).sum(-1).min(1))
  assert off.max() < 5 * 0.015
  np.testing.assert_allclose(points.std(), roll.get_config().noise.sigma_data, atol=0.05)


@pytest.mark.slow
def test_the_tutorial_runs_and_draws(roll, tmp_path, monkeypatch, capsys):
  lines = [line.strip() for line in docstring("swiss_roll").splitlines() if line.startswith("  python ")]
  monkeypatch.chdir(tmp_path)
  for line in lines:
    words = shlex.split(line)
    if words[1] == "launch/front.py":
      monkeypatch.setattr(sys, "argv", ["front.py", "--model=digits-cd", "--num=5", "--out=front.png"])
      front().main()
      continue
    small = {"train": ["--config.run.num_steps=2", "--noprogress"], "sample": ["--num=20"]}[words[3]]
    small = ["--num_steps=2" if word.startswith("--num_steps") else word for word in words[3:]] + small
    assert cli.run(small) == 0, (small, capsys.readouterr().err)
  for name in ("edm", "cd"):
    made = np.load(f"runs/roll/{name}.npz")["arr_0"]
    assert made.shape == (20, 1, 1, 2) and made.dtype == np.float32 and np.isfinite(made).all()
  assert (tmp_path / "front.png").stat().st_size > 10_000
