"""`benchmark --what=loop`: the loop is timed where it is, beside its step, and leaves nothing."""

import json
import os

import jax
import pytest

from cm_jax import cli
from cm_jax.benchmark import loop as loop_lib
from cm_jax.training import loop
from tests import tiny


@pytest.mark.slow
def test_both_are_timed_in_turns_in_one_run(monkeypatch):
  monkeypatch.setattr(loop_lib, "FEWEST", 3)
  folders, stops, train = [], [], loop.train

  def watched(experiment, workdir, hooks, progress):
    ((every, hook),) = hooks
    folders.append(workdir)
    assert experiment.method.num_steps == 3 * every
    return train(
      experiment, workdir, [(every, lambda *at: (stops.append(at[0]), hook(*at)))], progress=progress
    )

  monkeypatch.setattr(loop, "train", watched)
  alone, trained = loop_lib.measure(tiny.config(tiny.CT), rounds=2, seconds=1e-4)
  assert stops == [3, 6, 9]
  assert (alone["name"], trained["name"]) == (loop_lib.STEP, loop_lib.TRAIN)
  assert len(alone["seconds"]) == len(trained["seconds"]) == 2
  assert alone["x_step"] == 1
  for row in (alone, trained):
    assert row["low"] <= row["images_per_second"] <= row["high"]
    assert row["ms"] * row["images_per_second"] == pytest.approx(1e3 * row["batch"])
  assert not os.path.exists(folders[0])


@pytest.mark.slow
def test_the_command_says_both(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
  config = tmp_path / "mine.py"
  config.write_text("from tests import tiny\n\n\ndef get_config():\n  return tiny.config(tiny.ECT)\n")
  out = tmp_path / "loop.json"
  assert cli.run(["benchmark", "--what=loop", f"--config={config}", "--rounds=1", f"--out={out}"]) == 0
  rows = json.loads(out.read_text())["rows"]
  assert [row["name"] for row in rows] == [loop_lib.STEP, loop_lib.TRAIN]
  assert "x the step" in capsys.readouterr().out


def test_without_a_config_it_is_refused(capsys):
  assert cli.run(["benchmark", "--what=loop", "--network=digits8"]) == 2
  assert "what = loop: expected a --config beside it" in capsys.readouterr().err
