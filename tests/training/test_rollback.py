"""Rows of steps that are not finite: back to the checkpoint before them, on with other data, exactly, so many
times at most."""

import dataclasses
import json
import re

import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.assembly.complete import current
from cm_jax.data.pipeline import epoch_order
from cm_jax.errors import TrainingStopped, UserError
from cm_jax.storage import run as run_lib
from cm_jax.training import loop
from cm_jax.training.checkpoint import CheckpointStore
from cm_jax.training.resume import Position
from tests import tiny
from tests.training.test_peers import peers_port
from tests.training.test_train import equal, losses, run_cli


@dataclasses.dataclass(frozen=True)
class Poisoned:
  """Latents of 640 rows, NaN in those of some batches of 16 of the first epoch."""

  batches: tuple[int, ...] = ()
  fingerprint: str = "poisoned"
  num_classes: int = 0

  def __len__(self) -> int:
    return 640

  def __getitem__(self, index: int):
    place = int(np.flatnonzero(epoch_order(640, 0, 0) == index)[0])
    value = np.random.default_rng(index).normal(size=(8, 8, 1)).astype(np.float32) * 0.3
    return {"image": value * np.nan if place // 16 in self.batches else value, "label": -1}


def train(folder, *batches: int, stopped=lambda step: False, **run):
  settings = {"num_steps": 16, "checkpoint_every": 5, "max_nonfinite": 5, "on_skips": "rollback", **run}
  poisoned = dataclasses.replace(build(tiny.config(**settings)), source=Poisoned(batches))
  return loop.train(poisoned, folder, progress=False, stopped=stopped)


def rows_of(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_goes_back_and_on_with_the_data_after_the_row(tmp_path, capsys):
  # Batches 7 to 11 are steps 8 to 12; of checkpoints 5 and 10 the first is from before them.
  gone_back = train(tmp_path / "run", 7, 8, 9, 10, 11)
  said = capsys.readouterr().err
  expected = "step 12: 5 steps in a row were not finite; training goes back to checkpoint 5 and on with the "
  assert f"{expected}data after them (rollback 1 of at most 3)" in said
  rows = rows_of(tmp_path / "run")
  assert [row["step"] for row in rows] == list(range(1, 17))
  assert [(row.get("rollbacks"), row.get("data_offset")) for row in rows] == 5 * [(None, None)] + 11 * [
    (1, 7)
  ]
  assert all(row["loss"] is not None for row in rows)
  assert rows[4]["share_lost"] == 0 < rows[5]["share_lost"]
  assert sum(value for name, value in rows[-1].items() if name.startswith("share_")) == pytest.approx(1)
  # The same run by hand: 5 steps of the data, then those from batch 12 on.
  by_hand = tmp_path / "by hand"
  train(by_hand, num_steps=5)
  with pytest.MonkeyPatch.context() as patch:
    resume = loop.resume
    patch.setattr(loop, "resume", lambda *a: dataclasses.replace(resume(*a), position=Position(7, 1)))
    equal(gone_back, train(by_hand))
  assert CheckpointStore(tmp_path / "run").steps() == [15, 16]


@pytest.mark.slow
def test_after_going_back_it_resumes_exactly_wherever_it_is_stopped(tmp_path):
  whole = train(tmp_path / "whole", 7, 8, 9, 10, 11)
  for stop in (11, 14):  # in the row, and after going back
    parts = tmp_path / str(stop)
    calls = []

    def stopped(step, calls=calls, stop=stop):
      calls.append(step)
      return len(calls) == stop

    train(parts, 7, 8, 9, 10, 11, stopped=stopped)
    assert len(calls) == stop
    equal(whole, train(parts, 7, 8, 9, 10, 11))
    assert losses(parts) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_it_goes_back_so_many_times_at_most(tmp_path, capsys):
  with pytest.raises(TrainingStopped) as stopped:
    train(tmp_path, *range(7, 40), max_rollbacks=2)
  said = capsys.readouterr().err
  assert re.findall(r"\(rollback (\d) of at most 2\)", said) == ["1", "2"]
  assert "in a row up to step 10, after 2 rollbacks" in str(stopped.value)
  assert str(tmp_path / "checkpoints" / "5") in str(stopped.value)
  assert CheckpointStore(tmp_path).latest() == 5


@pytest.mark.slow
def test_a_run_that_has_no_good_checkpoint_begins_anew(tmp_path, capsys):
  state = train(tmp_path / "run", 0, 1, 2, max_nonfinite=3, checkpoint_every=50)
  assert "goes back to the start and on" in capsys.readouterr().err
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "Position", lambda: Position(3, 1))
    equal(state, train(tmp_path / "by hand"))


@pytest.mark.slow
def test_the_checkpoint_before_a_row_is_kept_however_many_are_written_in_it(tmp_path, capsys):
  train(tmp_path, *range(7, 15), checkpoint_every=2, keep_checkpoints=1, max_nonfinite=8)
  said = capsys.readouterr().err
  assert "goes back to checkpoint 6 " in said
  assert CheckpointStore(tmp_path).latest() == 16


@pytest.mark.parametrize(("key", "value"), [("on_skips", "back"), ("max_rollbacks", 0)])
def test_what_cannot_be_is_told(key, value):
  with pytest.raises(UserError, match=f"^config.run.{key} = {value}: expected "):
    build(tiny.config(**{key: value}))


def test_a_run_from_before_there_were_rollbacks_stops():
  stored = run_lib.config_lib.plain_json(tiny.config())
  for key in ("on_skips", "max_rollbacks"):
    del stored["run"][key]
  run = current(stored).run
  assert (run.on_skips, run.max_rollbacks) == ("stop", 3)


@pytest.mark.slow
def test_two_processes_go_back_together_and_train_as_one(tmp_path):
  poisoned = Poisoned((7, 8, 9, 10, 11))
  (tmp_path / "latents").mkdir()
  np.save(tmp_path / "latents" / "mean.npy", np.stack([poisoned[i]["image"] for i in range(640)]))
  (tmp_path / "config.py").write_text(
    "from tests import tiny\n\ndef get_config():\n"
    "  c = tiny.config(num_steps=16, checkpoint_every=5, max_nonfinite=5)\n  c.run.on_skips = 'rollback'\n"
    f"  c.data.source = 'latents:{tmp_path / 'latents'}'\n  return c\n"
  )
  command = ["train", f"--config={tmp_path / 'config.py'}", "--noprogress"]
  job = (f"--coordinator=127.0.0.1:{peers_port()}", "--num_processes=2")
  workdirs = {name: f"--workdir={tmp_path / name}" for name in ("one", "two")}
  one = [run_cli(*command, workdirs["one"])]
  two = [run_cli(*command, workdirs["two"], *job, f"--process_id={number}") for number in range(2)]
  said = [process.communicate(timeout=180)[0] for process in (*one, *two)]
  assert [process.returncode for process in (*one, *two)] == [0, 0, 0], said
  assert [text.count("goes back to checkpoint 5") for text in said] == [1, 1, 0]
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
  assert [row.get("data_offset") for row in rows_of(tmp_path / "two")] == 5 * [None] + 11 * [7]
