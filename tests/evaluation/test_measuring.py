"""The library functions that measure a model, a closed-form one: evaluate, search, bits."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from cm_jax.data.sources import images, labels, open_source
from cm_jax.errors import UserError
from cm_jax.evaluation import evaluate as evaluate_lib
from cm_jax.evaluation.bits import bits
from cm_jax.evaluation.evaluate import evaluate
from cm_jax.evaluation.features import ClassifierFeatures, save_features, train_features
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.metrics.frechet import Moments, distance_of_moments, frechet_floor
from cm_jax.evaluation.metrics.nn_distance import nearest_neighbour_distance
from cm_jax.evaluation.real import choose_sources
from cm_jax.evaluation.records import read
from cm_jax.evaluation.search import search
from cm_jax.sampling.choose import choose_samplers
from cm_jax.sampling.generate import generate, make_generator
from cm_jax.storage.pictures import save_grid
from cm_jax.storage.run import read_sigmas
from cm_jax.types import NoiseRange
from tests.gaussian import GaussianPreconditioned
from tests.sampling.models import model_of

NOISE = NoiseRange()
NAMES = ["fd_digits", "class_entropy", "nn_distance"]


def model(**fields):
  """Return a model of Gaussian pixels that was trained on the digits."""
  about = {
    "source": "digits:train",
    "step": 7,
    "average": "ema",
    "config_sha256": "c" * 64,
    "dataset_fingerprint": "f",
  }
  return model_of(GaussianPreconditioned(NOISE.sigma_min), (8, 8, 1), **{"provenance": about, **fields})


SAMPLERS = choose_samplers(model(), [(80,), (80, 0.8)])


@pytest.fixture(scope="module")
def features():
  source = open_source("digits")
  return train_features(images(source), labels(source), seed=0, num_steps=5)


def measure(features, samplers=SAMPLERS, measured=None, **arguments):
  given = {"num": 40, "batch_size": 16, "progress": False, **arguments}
  return evaluate(measured or model(), samplers, features, **given).made


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch):
  monkeypatch.setattr(
    evaluate_lib, "in_turns", lambda draws, **_: {name: [1.0] for name in draws if not draws[name]()}
  )


@pytest.mark.slow
def test_every_metric_of_every_sampler_is_what_it_is_by_hand(features):
  records = measure(features, seed=3)
  assert [record.metric for record in records] == [
    *("fd_digits_floor", "nn_distance_real", *NAMES, *NAMES, "images_per_second", "images_per_second"),
  ]
  found = {(record.metric, record.nfe): record for record in records}
  real, train, test = (images(open_source(spec)) for spec in ("digits", "digits:train", "digits:test"))
  reference = features(real)[0]
  samples = np.concatenate(
    list(generate(make_generator(model(), SAMPLERS[1]), model().params, range(40), 0, 16, seed=3))
  )
  expected = {
    ("fd_digits_floor", None): frechet_floor(reference),
    ("nn_distance_real", None): nearest_neighbour_distance(test, train),
    ("fd_digits", 2): distance_of_moments(Moments.of(features(samples)[0]), Moments.of(reference)),
    ("nn_distance", 2): nearest_neighbour_distance(samples, train),
  }
  assert {key: found[key].value for key in expected} == pytest.approx(expected, rel=0.02)
  one = found["fd_digits", 2]
  assert (one.n, one.sigmas, one.sampler, one.seed) == (40, (80.0, 0.8), {"name": "multistep"}, 3)
  assert (one.step, one.average, one.config_sha256, one.dataset_fingerprint) == (7, "ema", "c" * 64, "f")
  assert (one.reference, one.features_hash) == ("digits", features.hash)
  assert found["fd_digits_floor", None].n == len(real) // 2 and found["nn_distance_real", None].n == len(test)
  assert found["images_per_second", 2].n == 16


def test_features_and_sources_of_other_images(features, tmp_path):
  assert features.image_shape == (8, 8, 1)
  np.savez(tmp_path / "wide.npz", np.zeros((3, 12, 12, 1), np.uint8))
  wide = f"npz:{tmp_path / 'wide.npz'}"
  for argument in ("reference", "train_source", "test_source"):
    with pytest.raises(UserError, match=rf"^{argument} = {wide}: expected images of shape \[8, 8, 1\]"):
      measure(features, **{argument: wide})
  other = model_of(GaussianPreconditioned(NOISE.sigma_min), (8, 8, 3), provenance={"source": "digits"})
  with pytest.raises(UserError, match=r"^features = of \[8, 8, 1\] images: expected .* \[8, 8, 3\]"):
    measure(features, measured=other)
  with pytest.raises(UserError, match="^features = of"):
    search(other, 2, features, progress=False)


@pytest.mark.slow
def test_the_grid_of_a_model_of_classes_says_them(features, tmp_path):
  classes = ("fox", "owl", "bee")
  several = model(num_classes=3, class_names=classes)
  measure(features, SAMPLERS[:1], several, out=tmp_path / "run", metrics=["class_entropy"])
  drawn = generate(make_generator(several, SAMPLERS[0]), several.params, range(40), 3, 16)
  titles = [classes[i % 3] for i in range(40)]
  save_grid(np.concatenate(list(drawn)), tmp_path / "expected.png", columns=9, titles=titles)
  paths = tmp_path / "expected.png", tmp_path / "run" / "samples" / "nfe_001.png"
  np.testing.assert_array_equal(*(np.asarray(Image.open(path)) for path in paths))


@pytest.mark.slow
def test_what_was_measured_in_the_same_way_is_not_measured_again(features, tmp_path):
  save_features(tmp_path / "features", features)
  first = measure(tmp_path / "features", SAMPLERS[:1], out=tmp_path / "run")
  assert len(first) == 6 and read(tmp_path / "run" / "evaluations.jsonl") == first
  assert (tmp_path / "run" / "samples" / "nfe_001.png").is_file()
  assert measure(features, SAMPLERS[:1], out=tmp_path / "run") == []
  known = evaluate(model(), SAMPLERS[:1], features, num=40, batch_size=16, out=tmp_path / "run").found
  assert known == first
  added = measure(features, out=tmp_path / "run")  # one of two is new
  assert {record.nfe for record in added} == {None, 2}
  other = {
    "seed": {"seed": 1},
    "num": {"num": 41},
    "reference": {"reference": "digits:train"},
    "step": {"measured": model(provenance={**model().provenance, "step": 8})},
    "again": {"again": True},
  }
  for arguments in other.values():
    assert len(measure(features, SAMPLERS[:1], **{"out": tmp_path / "run", **arguments})) == 6, arguments
  records = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
  assert len(records) == 6 * 7


def test_a_new_metric_is_a_line_of_the_registry(features, tmp_path, monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Brightness:
    records, baseline, columns, about = (
      {"brightness": "brightness"},
      "real",
      {"brightness": "{brightness:.1f}"},
      "of the pixels",
    )
    needs, needs_real, needs_baseline, only = ("images",), (), ("images",), ()

    def values(self, samples, real):
      return {"brightness": float(samples.images.mean())}

    def of_real(self, real):
      return float(real.collected.images.mean()), real.collected.count

  assert len(measure(features, SAMPLERS[:1], out=tmp_path)) == 6
  monkeypatch.setitem(METRICS, "brightness", Brightness())
  added = measure(features, SAMPLERS[:1], out=tmp_path)  # what was measured before lacks it
  assert {"brightness", "brightness_real"} < {record.metric for record in added}
  assert measure(features, SAMPLERS[:1], out=tmp_path) == []


@pytest.mark.slow
def test_the_reference_goes_through_the_features_once(features, monkeypatch):
  calls = []
  plain = ClassifierFeatures.__call__
  monkeypatch.setattr(
    ClassifierFeatures,
    "__call__",
    lambda self, images, also=(): calls.append(len(images)) or plain(self, images, also),
  )
  measure(features)
  assert sum(calls) == 40 + 40 + 1797 and calls.count(256) == 7


@pytest.mark.slow
def test_only_the_main_process_writes(features, tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  assert len(measure(features, out=tmp_path / "run")) == 10
  search(model(), 2, features, num=20, out=tmp_path / "run", progress=False)
  bits(diffusion(), num=2, rtol=0.1, atol=0.1, out=tmp_path / "run", progress=False)
  assert not (tmp_path / "run").exists()


def test_without_held_out_images_nothing_is_said_of_them(features):
  records = measure(features, SAMPLERS[:1], measured=model(provenance={"source": "digits"}))
  assert [r.metric for r in records] == ["fd_digits_floor", *NAMES, "images_per_second"]


def test_sources_follow_the_models_own_data_unless_they_are_given():
  assert choose_sources(model()) == ("digits", "digits:train", "digits:test")
  assert choose_sources(model(), "digits:test") == ("digits:test", "digits:train", "digits:test")
  assert choose_sources(model(), train="digits") == ("digits", "digits", None)
  unknown = model(provenance={})
  assert choose_sources(unknown, "digits:train") == ("digits:train", "digits:train", "digits:test")
  with pytest.raises(UserError, match="^reference = : expected the data to compare with"):
    choose_sources(unknown)
  for field, given in (
    ("reference", ("x",)),
    ("train_source", ("digits", "x")),
    ("test_source", ("digits", None, "x")),
  ):
    with pytest.raises(UserError, match=f"^{field} = x: expected one of"):
      choose_sources(model(), *given)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"num": 1}, "^num = 1: expected at least 2"),
    ({"guidance": 2.0}, "^guidance = 2.0: expected none: the model has no classes"),
    ({"features": "nowhere"}, "^features = nowhere: expected one of: .*train-features"),
    ({"reference": "digit"}, "^reference = digit"),
  ],
)
def test_bad_arguments_are_named(features, arguments, message):
  with pytest.raises(UserError, match=message):
    measure(**{"features": features, **arguments})


@pytest.mark.slow
def test_a_search_finds_the_best_candidate_and_stores_it(features, tmp_path):
  best, history = search(model(), 2, features, num=40, batch_size=20, out=tmp_path, progress=False)
  assert best == min((e for e in history if e.n == 40), key=lambda e: e.value) and best.sigmas[0] == 80.0
  assert read_sigmas(tmp_path) == {2: best.sigmas}
  about = json.loads((tmp_path / "sigmas.json").read_text())["2"]
  assert (about["metric"], about["value"], about["n"], about["seed"]) == ("fd_digits", best.value, 40, 0)
  assert (tmp_path / "search_nfe_002.png").is_file()
  # It is the distance that evaluate measures of these samples.
  (sampler,) = choose_samplers(model(), [best.sigmas])
  measured = {record.metric: record.value for record in measure(features, [sampler], batch_size=20)}
  assert measured["fd_digits"] == pytest.approx(best.value, rel=1e-3)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"nfe": 1}, "^nfe = 1: expected 2 to 8"),
    ({"method": "grid"}, "^method = grid"),
    ({"reference": "digit"}, "^reference = digit"),
    ({"model": model(provenance={})}, "^reference = : expected the data to compare with"),
  ],
)
def test_bad_searches_are_named(features, arguments, message):
  with pytest.raises(UserError, match=message):
    search(**{"model": model(), "nfe": 2, "features": features, **arguments})


def diffusion():
  return dataclasses.replace(model(), preconditioned=GaussianPreconditioned(), kind="diffusion")


@pytest.mark.slow
def test_bits_are_those_of_the_density(tmp_path):
  record, found = bits(diffusion(), num=10, batch_size=4, seed=1, out=tmp_path, progress=False)
  data = images(open_source("digits:test"))[:10].reshape(10, -1)
  x, variance = data / 127.5 - 1, 0.5**2 + NOISE.sigma_min**2
  log_p = -0.5 * ((x - 0.2) ** 2).sum(1) / variance - 32 * np.log(2 * np.pi * variance)
  expected = -log_p / (64 * np.log(2)) + np.log2(127.5)
  np.testing.assert_allclose(found, expected, atol=0.02)
  assert record.value == found.mean() and record.n == 10 and record.reference == "digits:test"
  assert record.sampler == {
    "name": "likelihood",
    "trace": "hutchinson",
    "probes": 1,
    "samples": 1,
    "rtol": 1e-4,
  }
  assert read(tmp_path / "evaluations.jsonl") == [record]


def test_bits_are_of_diffusion_models_alone():
  """F3: the preconditioning's name says nothing; a model of an old folder is asked."""
  edm = {"precond": {"name": "edm"}}
  for kind in ("consistency", "flow_map"):
    with pytest.raises(UserError, match=f"^model = {kind}: expected a diffusion model"):
      bits(model(kind=kind, **edm))
  with pytest.raises(UserError, match="^kind = : expected diffusion, consistency or flow_map"):
    bits(model(kind=None, **edm))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"source": "digit"}, "^source = digit"),
    ({"trace": "some"}, "^trace = some"),
    ({"rtol": 2.0}, "^rtol = 2.0"),
  ],
)
def test_bad_likelihoods_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    bits(diffusion(), **arguments)
  with pytest.raises(UserError, match="^source = : expected real images"):
    bits(dataclasses.replace(diffusion(), provenance={}))
  with pytest.raises(UserError, match=r"^source = digits:test: expected images of shape \(4, 4, 1\)"):
    bits(dataclasses.replace(diffusion(), image_shape=(4, 4, 1)))


def test_samples_that_are_no_numbers_are_told_and_leave_nothing(features, tmp_path):
  broken = model(params={"net": {"mean": np.float32(np.nan), "std": np.float32(0.5)}})
  with pytest.raises(
    UserError, match="^model = sample 0 has NaN: expected a model whose samples are numbers"
  ):
    measure(features, SAMPLERS[:1], measured=broken, out=tmp_path / "run")
  assert not list(tmp_path.rglob("*.jsonl")) and not list(tmp_path.rglob("state"))
