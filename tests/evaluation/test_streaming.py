"""What streams is what is measured at once: in chunks, interrupted, of any reference; what does not fit is a
line and leaves nothing."""

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation import collecting
from cm_jax.evaluation.collecting import chunks, collect
from cm_jax.evaluation.evaluate import evaluate_images
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.metrics.frechet import Frechet, frechet_distance
from cm_jax.evaluation.moments import Moments
from cm_jax.evaluation.partial import KEPT, Partial, unfinished
from cm_jax.evaluation.records import read
from cm_jax.evaluation.references import Statistics, read_statistics, save_statistics
from cm_jax.evaluation.references.made import checked, make_reference
from tests.evaluation.toys import SIZE, ToyExtractor, pictures


@dataclasses.dataclass(frozen=True)
class Plain(Frechet):
  """The distance under a name of its own, without a floor."""

  records, columns, needs_baseline = {"toy": "toy"}, {"Toy": "{toy:.3f}"}, ()
  baseline, about, only = "", "toy: a distance.", ()

  def values(self, samples, real):
    return {"toy": super().values(samples, real)["fd"]}


@dataclasses.dataclass(frozen=True)
class Rows:
  """Keeps features, logits and images; has a convention's choice."""

  splits: int = 4
  records, baseline, columns, about = (
    {"mean": "mean_{data}", "most": "most"}, "", {"mean": "{mean:.2f}"}, "mean.",
  )  # fmt: skip
  needs, needs_real, needs_baseline, only = ("features", "logits", "images"), ("features",), (), ()

  def values(self, samples, real):
    total = samples.features.astype(np.float64).mean() - real.collected.features.astype(np.float64).mean()
    return {"mean": total * self.splits, "most": samples.logits.max() + samples.images.max()}


@pytest.fixture(autouse=True)
def metrics(monkeypatch, tmp_path):
  monkeypatch.setitem(METRICS, "toy", Plain())
  monkeypatch.setitem(METRICS, "rows", Rows())
  monkeypatch.setattr(collecting, "CHUNK", 16)
  monkeypatch.setenv("CM_JAX_CACHE", str(tmp_path / "cache"))


def npz(path, images):
  np.savez(path, images)
  return str(path)


@pytest.fixture
def sets(tmp_path):
  return npz(tmp_path / "a.npz", pictures(70)), npz(tmp_path / "b.npz", pictures(90, 1, bright=20))


def measured(images, reference, extractor=None, **how):
  given = {"metrics": ["toy"], "progress": False, "batch_size": 9, **how}
  return evaluate_images(images, extractor or ToyExtractor(), reference, **given)


def one_shot(a, b):
  extractor = ToyExtractor()
  stats = []
  for images in (a, b):
    features = extractor(images).features.astype(np.float64)
    stats += [features.mean(0), np.cov(features, rowvar=False)]
  return frechet_distance(*stats)


@pytest.mark.parametrize("num", [70, 33, 6])
def test_streaming_is_one_shot(sets, num):
  extractor = ToyExtractor()
  (record,) = measured(*sets, extractor, num=num).made
  assert record.value == pytest.approx(one_shot(pictures(70)[:num], pictures(90, 1, bright=20)), rel=1e-6)
  assert (record.n, record.convention, record.features_hash, record.resize) == (num, "edm", "7" * 64, "none")
  assert record.samples.endswith("a.npz") and len(record.reference_hash) == 64
  assert max(extractor.shown) <= 16


def test_moments_need_no_memory_that_grows(sets):
  """No array of as many rows as there are images stays."""
  seen = []

  def batches(start, stop):
    for begin in range(start, stop, 5):
      yield pictures(min(5, stop - begin), begin)

  collect(
    batches, range(100), ToyExtractor(), ("moments", "spatial_moments"), done=seen.append, progress=False
  )
  assert [one.count for one in seen][:2] == [16, 32] and not any(one.rows for one in seen)
  assert seen[-1].moments["moments"].scatter.shape == (SIZE, SIZE)


def test_chunks_keep_every_row():
  rows = np.arange(23)
  assert [len(chunk) for chunk in chunks(np.split(rows, [1, 2, 15]), 7)] == [7, 7, 7, 2]
  np.testing.assert_array_equal(np.concatenate(list(chunks(np.split(rows, [1, 2, 15]), 7))), rows)


@dataclasses.dataclass(frozen=True)
class Interrupted(ToyExtractor):
  """Ends after so many calls, as a signal does: the reference's six chunks, and three."""

  calls: int = 6 + 3

  def __call__(self, images, also=()):
    if len(self.shown) == self.calls:
      raise KeyboardInterrupt
    return super().__call__(images, also)


@pytest.mark.parametrize("metrics_", [["toy"], ["rows", "toy"]])
def test_an_interrupted_evaluation_goes_on_and_is_the_same(sets, tmp_path, metrics_):
  whole = measured(*sets, metrics=metrics_, out=tmp_path / "whole").made
  remembered = metrics_ == ["toy"]  # the reference, whose moments are all that is needed
  with pytest.raises(KeyboardInterrupt):
    measured(*sets, Interrupted(calls=3 if remembered else 9), metrics=metrics_, out=tmp_path / "run")
  out = tmp_path / "run"
  assert not (out / "evaluations.jsonl").exists()
  (state,) = (out / ".evaluating").iterdir()
  assert state.stat().st_mode & 0o077 == 0
  extractor = ToyExtractor()
  resumed = measured(*sets, extractor, metrics=metrics_, out=out).made
  reference = [] if remembered else [16] * 5 + [10]
  assert extractor.shown == [*reference, 16, 6]
  assert [r.value for r in resumed] == pytest.approx([r.value for r in whole], rel=1e-12)
  assert not (out / ".evaluating").exists() and read(out / "evaluations.jsonl") == resumed
  again = measured(*sets, extractor, metrics=metrics_, out=out)
  assert again.made == [] and again.found == resumed
  assert len(measured(*sets, metrics=metrics_, out=out, again=True).made) == len(whole)


def test_another_evaluation_does_not_take_up_what_is_left(sets, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    measured(*sets, Interrupted(), out=tmp_path)  # after 48 images
  few = measured(*sets, num=40, out=tmp_path)
  assert few.made[0].value == pytest.approx(one_shot(pictures(40), pictures(90, 1, bright=20)), rel=1e-6)
  assert (tmp_path / ".evaluating").is_dir()
  assert few.told[-1] == "unfinished evaluations in .evaluating: 1; the same command goes on with each"
  more = measured(*sets, num=60, out=tmp_path)  # of the same images, and further than what is left
  assert not (tmp_path / ".evaluating").exists() and "unfinished" not in more.told[-1]


def test_what_is_left_is_bounded(tmp_path):
  known, place = collecting.Collected().added(pictures(4), ToyExtractor(), ("moments",)), epath.Path(tmp_path)
  for number in range(KEPT + 3):
    Partial(place, {"seed": number}, {"num": 9}).save(known)
    for age, path in enumerate(sorted(tmp_path.glob("*/state"), key=lambda path: path.stat().st_mtime)):
      os.utime(path, (age, age))
  assert len(unfinished(place)) == KEPT
  left = [Partial(place, {"seed": number}, {"num": 9}).load() is not None for number in range(KEPT + 3)]
  assert left == [False] * 3 + [True] * KEPT
  Partial(place, {"seed": 9}, {"num": 3}).clear(3)
  assert len(unfinished(place)) == KEPT  # it had come further
  Partial(place, {"seed": 9}, {"num": 5}).clear(5)
  assert len(unfinished(place)) == KEPT - 1


def test_what_is_damaged_of_it_is_measured_anew(sets, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    measured(*sets, Interrupted(), metrics=["rows"], out=tmp_path)
  (state,) = (tmp_path / ".evaluating").iterdir()
  kept = next(file for file in state.iterdir() if file.name.startswith("rows"))
  kept.write_bytes(kept.read_bytes()[:-1] + b"x")
  extractor = ToyExtractor()
  assert measured(*sets, extractor, metrics=["rows"], out=tmp_path).made[0].n == 70
  assert sum(extractor.shown) == 90 + 70


def test_partial_writes_now_and_then(tmp_path):
  now = [0.0]
  partial = Partial(tmp_path / "p", {"a": 1}, {}, every=10, clock=lambda: now[0])
  extractor, known = ToyExtractor(), collecting.Collected()
  for count, time in ((3, 5.0), (4, 11.0), (5, 12.0)):
    known = known.added(pictures(count, count), extractor, ("moments", "features"))
    now[0] = time
    partial.note(known)
  found = Partial(tmp_path / "p", {"a": 1}, {}).load()
  assert found.count == 7 and found.features.shape == (7, SIZE) and found.moments["moments"].count == 7
  assert Partial(tmp_path / "p", {"a": 2}, {}).load() is None


def test_a_reference_that_is_computed_is_remembered(sets):
  first, second = ToyExtractor(), ToyExtractor()
  values = [measured(*sets, extractor).made[0].value for extractor in (first, second)]
  assert sum(first.shown) == 160 and sum(second.shown) == 70
  assert values[0] == pytest.approx(values[1], rel=1e-12)
  other = dataclasses.replace(ToyExtractor(), hash="8" * 64)
  measured(*sets, other)
  assert sum(other.shown) == 160


def test_every_form_of_reference_is_one_number(sets, tmp_path):
  features = ToyExtractor()(pictures(90, 1, bright=20)).features
  moments = Moments.of(features)
  mu, sigma = moments.mean, moments.covariance
  np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
  np.savez(tmp_path / "adm.npz", arr_0=pictures(8), mu=mu, sigma=sigma, mu_s=np.zeros(2), sigma_s=np.eye(2))
  (tmp_path / "edm2.pkl").write_bytes(pickle.dumps({"fid": {"mu": mu, "sigma": sigma}}))
  made = make_reference(sets[1], ToyExtractor(), tmp_path / "ours.npz", convention="edm")
  assert (
    made.about["n"] == 90 and made.about["convention"] == "edm" and made.about["image_shape"] == [6, 5, 3]
  )
  assert checked(str(tmp_path / "ours.npz"), ToyExtractor(), "edm").moments.count == 90
  expected = measured(*sets).made[0].value
  for name in ("edm.npz", "adm.npz", "edm2.pkl", "ours.npz"):
    (record,) = measured(sets[0], str(tmp_path / name)).made
    assert record.value == pytest.approx(expected, rel=1e-6), name
    assert record.reference == str(tmp_path / name)


def test_choices_of_a_convention_reach_the_metric_and_the_record(sets):
  for changed, splits in (({}, 10), ({"splits": 3}, 3)):
    found = {r.metric: r for r in measured(*sets, metrics=["rows"], convention="adm", num=70, **changed).made}
    assert set(found) == {"mean_inception", "most"}
    assert found["most"].splits == splits and found["most"].convention == "adm"
  told = measured(*sets, metrics=["rows"], convention="torch-fidelity", num=70).told
  assert "convention torch-fidelity: samples uint8 as given, n 70, splits 10" in told[0]
  assert "sha256 7777777777777777" in told[1] and "products highest" in told[1]


def test_another_choice_is_another_measurement(sets, tmp_path):
  how = {"metrics": ["rows"], "out": tmp_path, "num": 70}
  first = measured(*sets, **how).made
  assert all(record.choices == {"splits": 10} for record in first)
  assert measured(*sets, splits=10, **how).made == []
  assert [record.choices for record in measured(*sets, splits=5, **how).made] == [{"splits": 5}] * 2
  other = dataclasses.replace(ToyExtractor(), resize="pil-bicubic 4")
  assert len(measured(*sets, other, **how).made) == 2


def test_a_network_that_takes_images_as_they_are_has_no_resize(sets):
  with pytest.raises(
    UserError, match=r"^resize = tf1-bilinear: expected none: inception takes images as they"
  ):
    measured(*sets, resize="tf1-bilinear")
  with pytest.raises(UserError, match=r"^resize = tf1: expected .*tf1-bilinear"):
    measured(*sets, resize="tf1")


def stats(tmp_path, size=SIZE, **about):
  rng = np.random.default_rng(0)
  path = tmp_path / "stats.npz"
  save_statistics(path, Statistics(Moments.of(rng.standard_normal((50, size))), None, about))
  return str(path)


BAD = {
  "more than there are": ({"num": 71}, r"^num = 71: expected at most the 70 images in"),
  "the convention's count": ({"convention": "edm"}, r"^num = 50000: expected at most the 70 images"),
  "few": ({"num": 4}, r"^num = 4: expected more than the 4 features of inception: .*singular"),
  "one": ({"num": 1}, r"^num = 1: expected at least 2"),
  "unknown metric": ({"metrics": ["toys"]}, r"^metrics = toys: expected 'toy' \(did you mean it\?\)"),
  "unknown convention": ({"convention": "edn"}, r"^convention = edn: expected 'edm' \(did you"),
  "unknown quantiser": ({"quantiser": "floor"}, r"^quantiser = floor: expected one of: adm, edm"),
  "no splits": ({"splits": 0}, r"^splits = 0: expected at least 1"),
  "unknown kernel": ({"kernel": "gauss"}, r"^kernel = gauss: expected one of: polynomial, rbf"),
  "no width": ({"kernel_width": 0.0}, r"^kernel_width = 0\.0: expected a positive number"),
  "no reference": ({"reference": None}, r"^reference = : expected what to compare with"),
  "published": (
    {"reference": "cifar10-edm"},
    r"^reference = cifar10-edm: expected the path of a file: get https",
  ),
  "unknown reference": ({"reference": "cifar11-edm"}, r"'cifar10-edm' \(did you mean it\?\)"),
  "gone": ({"reference": "nowhere.npz"}, r"^reference = nowhere\.npz: expected one of.*a file that is there"),
  "rows of statistics": ({"metrics": ["rows"], "reference": {}}, "has statistics only, no features"),
  "features": ({"reference": {"size": 6}}, "the 4 features of inception, not of 6"),
  "network": ({"reference": {"features_hash": "9" * 64}}, "of the features hash 7777777777777777..., not 99"),
  "resize": ({"reference": {"resize": "bicubic"}}, "of the resize none, not bicubic"),
  "convention": ({"reference": {"convention": "adm"}}, "of the convention edm, not adm"),
  "resolution": ({"reference": {"image_shape": [8, 8, 3]}}, r"image shape \[6, 5, 3\], not \[8, 8, 3\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(sets, tmp_path, case):
  how, said = BAD[case]
  how = dict(how)
  reference = how.pop("reference", sets[1])
  reference = stats(tmp_path, **reference) if isinstance(reference, dict) else reference
  extractor = ToyExtractor()
  with pytest.raises(UserError, match=said) as caught:
    measured(sets[0], reference, extractor, out=tmp_path / "out", **how)
  assert "\n" not in str(caught.value) and not (tmp_path / "out").exists() and extractor.shown == []


def test_images_of_another_size_than_the_reference(sets, tmp_path):
  other = npz(tmp_path / "c.npz", pictures(9, shape=(8, 5, 3)))
  with pytest.raises(UserError, match=r"^reference = .*c\.npz: expected images of shape \[6, 5, 3\]"):
    measured(sets[0], other)
  own = dataclasses.replace(ToyExtractor(), image_shape=(8, 5, 3))
  with pytest.raises(UserError, match=r"^features = of \[8, 5, 3\] images"):
    measured(*sets, own)


def test_nan_among_images_leaves_nothing(sets, tmp_path):
  x = pictures(70).astype(np.float32) / 127.5 - 1
  x[50, 0, 0, 0] = np.nan
  bad = npz(tmp_path / "x.npz", x)
  with pytest.raises(UserError, match="image 50 has NaN"):
    measured(bad, sets[1], out=tmp_path / "out", save_every=0)
  assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))
  read_statistics(stats(tmp_path))


def test_a_part_of_what_there_is_is_said_to_be_the_first(sets):
  assert measured(*sets, num=20).told[-1] == "images: the first 20 of 70: a folder's come class by class"
  assert "the first" not in measured(*sets, num=70).told[-1]


def test_few_is_measured_when_it_is_asked_for(sets):
  assert measured(*sets, num=3, few=True).made[0].n == 3
  own = dataclasses.replace(ToyExtractor(), name="classifier")
  assert measured(*sets, own, num=3).made[0].convention == "own"


def test_the_network_may_lack_what_a_metric_needs(sets):
  plain = dataclasses.replace(ToyExtractor(), gives=())
  with pytest.raises(UserError, match="^features = inception: expected .*logits"):
    measured(*sets, plain, metrics=["rows"])
  only = dataclasses.replace(ToyExtractor(), name="dinov2-l")
  METRICS["toy"].__class__.only = ("inception",)
  try:
    with pytest.raises(UserError, match="^features = dinov2-l: expected inception: toy in other features"):
      measured(*sets, only)
  finally:
    METRICS["toy"].__class__.only = ()


def test_records_read_again_are_plain_json(sets, tmp_path):
  measured(*sets, out=tmp_path)
  (line,) = (tmp_path / "evaluations.jsonl").read_text().splitlines()
  assert (
    json.loads(line)["quantiser"] == "uint8 as given" and json.loads(line)["matmul_precision"] == "highest"
  )
