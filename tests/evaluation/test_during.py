"""A cheap metric while a run trains: into its metrics at its steps, from the same noise, as a curve."""

import json

import jax
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import build
from cm_jax.config import default
from cm_jax.data.sources import Framing, images, open_source
from cm_jax.errors import UserError
from cm_jax.evaluation import features as features_lib
from cm_jax.evaluation.during import During, sampler_of
from cm_jax.evaluation.metrics.frechet import distance_of_moments
from cm_jax.evaluation.moments import Moments
from cm_jax.sampling.generate import generate, make_generator
from cm_jax.training import loop
from tests import tiny
from tests.evaluation.test_measuring import model
from tests.evaluation.toys import ToyExtractor


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  extractor = ToyExtractor(name="toy")
  monkeypatch.setitem(features_lib.FEATURES, "toy", lambda weights: extractor)
  return extractor


def test_it_is_the_metric_of_the_same_samples(toy):
  one, mesh = model(), jax.make_mesh((8, 1), ("data", "fsdp"))
  sampler = sampler_of(one, None, 1)
  during = During(one, sampler, "digits:train", Framing(), "fd", "toy", 40, 3, 16, mesh)
  samples = np.concatenate(
    list(generate(make_generator(one, sampler), one.params, range(40), 0, 16, mesh, seed=3))
  )
  real = Moments.of(toy(images(open_source("digits"))).features)
  expected = distance_of_moments(Moments.of(toy(samples).features), real)
  assert during(one.params) == {"fd": pytest.approx(expected, rel=1e-6)} == during(one.params)


def test_a_diffusion_model_takes_odd_numbers_of_evaluations():
  diffusion = model(kind="diffusion")
  assert sampler_of(diffusion, None, 7).num_steps == 4
  with pytest.raises(UserError, match="^nfe = 8: expected an odd number"):
    sampler_of(diffusion, None, 8)
  own = object()
  assert sampler_of(diffusion, own, 0) is own


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"every": -1}, "config.run.evaluate.every = -1: expected an integer, 0 or more"),
    ({"num": 1}, "config.run.evaluate.num = 1: expected an integer, 2 or more"),
    ({"metric": "fdd"}, "config.run.evaluate.metric = fdd: expected 'fd' (did you mean it?)"),
    ({"features": ""}, "config.run.evaluate.features = : expected a name of features"),
    ({"nfe": True}, "config.run.evaluate.nfe = True: expected an integer"),
  ],
)
def test_bad_values_are_told_before_any_work(change, said):
  config = tiny.config(tiny.CT)
  with config.ignore_type():
    config.run.evaluate.update(change)
  with pytest.raises(UserError) as caught:
    build(config)
  assert str(caught.value).startswith(said)


def test_old_configs_are_without_it():
  assert default().run.evaluate.every == 0


@pytest.mark.slow
def test_a_run_has_it_in_its_metrics_and_its_picture(tmp_path, capsys):
  config = tiny.config(tiny.CT, num_steps=6, log_every=4)
  loop.train(build(config), tmp_path / "plain", progress=False)
  workdir = f"--workdir={tmp_path / 'run'}"
  (tmp_path / "config.py").write_text(
    "from tests import tiny\ndef get_config():\n  return tiny.config(tiny.CT, num_steps=4, log_every=4)\n"
  )
  evaluate = [f"--config.run.evaluate.{key}" for key in ("every=2", "features=toy", "num=24", "nfe=1")]
  flags = ["train", workdir, "--noprogress", *evaluate]
  assert cli.run([*flags, f"--config={tmp_path / 'config.py'}"]) == 0, capsys.readouterr().err
  assert cli.run([*flags, "--config.run.num_steps=6"]) == 0, capsys.readouterr().err
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [2, 4, 6] and all(line["fd"] > 0 for line in lines)
  plain = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in plain] == [4, 6] and plain[-1]["loss"] == pytest.approx(lines[-1]["loss"])
  assert list((tmp_path / "run" / "tensorboard").iterdir())
  measure = ["evaluate", workdir, "--features=toy", "--num=24", "--metrics=fd", "--sigmas=80"]
  assert cli.run(measure) == 0, capsys.readouterr().err
  assert cli.run(["report", f"--folder={tmp_path}"]) == 0
  records = [json.loads(l) for l in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
  found = next(record for record in records if record["nfe"] == 1)
  assert found["metric"] == "fd_toy" and found["value"] == pytest.approx(lines[-1]["fd"], rel=1e-3)
