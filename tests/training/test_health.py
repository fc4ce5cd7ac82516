"""What went wrong in training is said, once as it happens and once at the end."""

import math

import pytest

from cm_jax.training.health import Health


@pytest.mark.parametrize(
  "losses,grew",
  [
    ((0.8, 0.4, 0.3, 250.0), False),
    ((0.8, 0.4, 0.3, 310.0), True),
    ((2e6, 1e4, 3e10, 5e8), True),
    ((1.5, -0.2, -1.0, 900.0), False),  # a learned weighting: the loss has no zero
    ((1.5, -0.2, -1.0, 2000.0), True),
    ((-1.0, -2.0, math.nan, 3e5), True),
    ((0.0, 0.0, 0.0, 0.0), False),
    ((None, "x", math.inf, 5.0), False),
  ],
)
def test_a_loss_that_grew_is_said(losses, grew, capsys):
  health = Health(lambda step: step // 20 * 20 or None)
  for step, loss in enumerate(losses, 1):
    health.see(10 * step, {"loss": loss})
  said = capsys.readouterr().err
  assert (said.count("\n") == 1 and "the loss is" in said) == grew
  health.end(40)
  said = capsys.readouterr().err
  assert ("training has diverged; " in said) == grew
  assert ("; checkpoint 20 is from before" in said) == (grew and health.good >= 20)


def test_a_loss_that_came_back_is_no_divergence_at_the_end(capsys):
  health = Health()
  for step, loss in ((10, 1.0), (20, 1e5), (30, 1e6), (40, 1.2)):
    health.see(step, {"loss": loss})
  health.end(40)
  assert capsys.readouterr().err.count("\n") == 1 and health.good == 40


@pytest.mark.parametrize(
  "skipped,total,lines", [(0, 100, 0), (1, 100, 1), (2, 100, 1), (9, 1000, 1), (3, 100, 2)]
)
def test_skipped_steps_are_said_at_the_end_and_when_they_are_many(skipped, total, lines, capsys):
  health = Health()
  for step in (total // 2, total):
    health.see(step, {"loss": 1.0, "nonfinite_total": skipped * step / total})
  health.end(total)
  said = capsys.readouterr().err.splitlines()
  assert len(said) == lines and all(f"{skipped} of {total} steps" in line for line in said)


def test_what_an_earlier_process_said_counts_and_is_not_said_again(capsys):
  health = Health()
  health.see(10, {"step": 10, "loss": 0.5}, quiet=True)
  health.see(20, {"step": 20, "loss": 1e6}, quiet=True)
  assert not capsys.readouterr().err
  health.see(30, {"loss": 2e6})
  assert "was 0.5 at its best" in capsys.readouterr().err
