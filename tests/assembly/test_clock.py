"""One clock: num_images is the length of a run; learning rate, curricula and stages follow it and the batch
size."""

import json

import ml_collections
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import assemble, build, complete
from cm_jax.assembly.resume import check_same_run
from cm_jax.config import plain_json
from cm_jax.errors import UserError
from cm_jax.training import loop
from tests import tiny
from tests.configs import rows

SHAPE = (8, 8, 1)


def ends(name: str, **changes) -> dict[str, float]:
  """Return where a shipped config's learning rate and curricula stand in its last step."""
  config = rows.config_of(name)
  for key, value in changes.items():
    config[key] = value
  if config.network.name == "songunet":
    config.network.update(
      {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": ()}
    )
  else:
    config.network = {"name": "toy"}
  config.data.augment = {}
  if "augment_dim" in config.network:
    config.network.augment_dim = 0
  method = assemble(config, SHAPE, 10)
  last = method.num_steps - 1
  found = {
    "steps": method.num_steps,
    "rate": float(method.learning_rate(last)),
    "start": float(method.learning_rate(0)),
  }
  stages = method.objective.needs.stages
  return {**found, **{k: float(v) for k, v in method.objective.progress(last).items()}, "end": stages[-1:]}


# Audit A1, line by line: what an override of the batch size left of these rows, and what is right.
ROWS = [
  ("cifar10_ict", 512, "num_scales", 1281),  # was 81
  ("cifar10_ct", 256, "num_scales", 151),  # was 107
  ("cifar10_pd", 256, "num_scales", 1),  # was 32: the one-step student was never trained
  ("cifar10_ect", 64, "stage", 7),  # was 3
  ("cifar10_ect", 256, "stage", 7),
  ("imagenet64_ct", 1024, "num_scales", 201),
]


@pytest.mark.parametrize(("name", "batch_size", "key", "last"), ROWS)
def test_a_row_of_another_batch_size_ends_as_the_row_does(name, batch_size, key, last):
  assert ends(name, batch_size=batch_size)[key] == last


def test_ects_stages_are_equally_long_at_any_batch_size():
  for batch_size in (64, 96, 256):
    config = rows.config_of("cifar10_ect")
    config.batch_size = batch_size
    config.network, config.data.augment = {"name": "toy"}, {}
    method = assemble(config, SHAPE, 0)
    starts = np.array(method.objective.pairs.stages.starts)
    assert len(starts) == 8 and set(np.diff(starts)) == {method.num_steps // 8}


def test_a_teacher_of_another_batch_size_sees_as_many_images():
  assert ends("cifar10_edm", batch_size=256)["steps"] * 256 == 200_000_000
  assert ends("imagenet64_edm", batch_size=1000)["steps"] * 1000 == 2_500_000_000


@pytest.mark.parametrize(
  ("name", "stop", "instead"), [("digits_cd", 2000, 128_000), ("digits_edm", 2500, 160_000)]
)
def test_a_longer_run_is_asked_for_in_images_and_then_learns_to_its_end(name, stop, instead):
  """README:45 and `train --help` had run.num_steps, past whose cosine nothing was learnt."""
  config = rows.config_of(name)
  config.run.num_steps = stop
  with pytest.raises(UserError, match=rf"a longer run: config\.num_images = {instead}$"):
    assemble(config, SHAPE, 0)
  config.run.num_steps, config.num_images = 0, instead
  method = assemble(config, SHAPE, 0)
  rates = [float(method.learning_rate(step)) for step in (0, stop // 2, stop - 1)]
  assert method.num_steps == stop and rates[2] > 0
  assert rates[1] == pytest.approx(rates[0] / 2, rel=1e-3)


def test_four_times_the_batch_is_a_quarter_of_the_steps_and_the_same_cosine():
  whole, quarter = (assembled("digits_cd", batch_size=size) for size in (64, 256))
  assert (whole.num_steps, quarter.num_steps) == (750, 188)
  for step in (10, 100, 187):
    wanted = float(whole.learning_rate(step * 750 / 188))
    assert float(quarter.learning_rate(step)) == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def assembled(name: str, **changes):
  config = rows.config_of(name)
  config.update(changes)
  return assemble(config, SHAPE, 0)


def config_of(**changes) -> ml_collections.ConfigDict:
  config = tiny.config(tiny.CT, num_steps=0)
  config.num_images = 16 * 20
  config.optimizer.schedule = "cosine"
  for key, value in changes.items():
    config[key] = value
  return config


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda c: c.run.update({"num_steps": 21}),
      r"config\.run\.num_steps = 21: .*config\.num_images = 320, 20 steps of 16",
    ),
    (
      lambda c: c.optimizer.update({"decay_images": 160}),
      r"config\.optimizer\.decay_images = 10: expected 0, to follow",
    ),
    (
      lambda c: c.update({"num_images": 0}),
      r"config\.num_images = 0: expected the length of the run in images",
    ),
    (lambda c: c.update({"num_images": True}), r"config\.num_images = True: expected an integer"),
  ],
)
def test_a_length_that_cannot_be_is_refused(change, message):
  config = config_of()
  with config.ignore_type():
    change(config)
  with pytest.raises(UserError, match=message):
    assemble(config, SHAPE, 0)


def test_a_curriculum_in_images_is_kept_and_one_without_follows():
  config = config_of()
  assert assemble(config, SHAPE, 0).objective.pairs.scales.starts[-1] < 12
  config.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 6}
  following = assemble(config, SHAPE, 0).objective.pairs.scales
  assert 12 < following.starts[-1] < 20 and following.values[-1] == 7


def grown(before: ml_collections.ConfigDict, images: int) -> None:
  after = ml_collections.ConfigDict(before)
  after.num_images = images
  check_same_run(complete(after), plain_json(complete(before)) | {"format": 2}, "config.json")


def test_a_run_may_grow_if_nothing_ends_with_it():
  open_end = config_of()
  open_end.optimizer.schedule = "constant"
  grown(open_end, 16 * 40)
  with pytest.raises(UserError, match=r"config\.num_images = 160: expected 320 as in config\.json, or more"):
    grown(open_end, 160)
  with pytest.raises(
    UserError, match=r"config\.num_images = 640: .*config\.optimizer\.decay_images ends with it"
  ):
    grown(config_of(), 640)
  open_end.objective.pairs.scales = {"name": "progressive", "s0": 2, "s1": 6}
  with pytest.raises(UserError, match=r"config\.objective\.pairs\.scales\.total_images ends with it"):
    grown(open_end, 640)


def test_the_same_length_said_in_two_ways_is_one_run():
  said, followed = config_of(), config_of()
  said.optimizer.decay_images = 320
  stored = lambda config: plain_json(complete(config)) | {"format": 2}
  check_same_run(complete(followed), stored(said), "config.json")
  said.optimizer.decay_images = 640
  with pytest.raises(UserError, match=r"config\.optimizer\.decay_images = 0: expected 640"):
    check_same_run(complete(followed), stored(said), "config.json")


@pytest.mark.slow
def test_a_grown_run_goes_on_and_keeps_its_identity(tmp_path):
  config = config_of()
  config.optimizer.schedule = "constant"
  config.num_images = 16 * 4
  loop.train(build(config), tmp_path, progress=False)
  first = json.loads((tmp_path / "config.json").read_text())
  assert first["format"] == 2 and first["optimizer"]["b1"] == 0.9
  assert cli.run(["train", f"--workdir={tmp_path}", "--noprogress", "--config.num_images=96"]) == 0
  after = json.loads((tmp_path / "config.json").read_text())
  assert after["num_images"] == 96 and after["config_sha256"] == first["config_sha256"]
  steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  np.testing.assert_array_equal(steps, np.arange(1, 7))
