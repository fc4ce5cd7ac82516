"""The metrics of published features, asked for by name in one call, are what their functions say."""

import numpy as np

from cm_jax.evaluation.collecting import Collected
from cm_jax.evaluation.metrics import METRICS, ON_REQUEST
from cm_jax.evaluation.metrics.frechet import distance_of_moments
from cm_jax.evaluation.metrics.inception_score import InceptionScore, inception_scores
from cm_jax.evaluation.metrics.kid import KID, RBF, Polynomial, kernel_distances
from cm_jax.evaluation.metrics.neighbours import PrecisionRecall, prdc
from cm_jax.evaluation.moments import Moments


class Pair:
  """Real images of which only the reference is known."""

  train = held_out = None

  def __init__(self, collected):
    self.collected = collected

  def remembered(self, name, make):
    return make()


def known(seed: int, count: int) -> Collected:
  random = np.random.default_rng(seed)
  rows = {
    "features": (random.normal(size=(count, 5)).astype(np.float32) + seed * 0.1,),
    "logits": (random.normal(size=(count, 4)).astype(np.float32),),
  }
  moments = {
    "moments": Moments.of(rows["features"][0]),
    "spatial_moments": Moments.of(random.normal(size=(count, 3))),
  }
  return Collected(count, moments, rows)


def test_each_is_its_function_with_its_options():
  samples, real = known(1, 70), Pair(known(2, 60))
  features = samples.features, real.collected.features
  for name, kind in (("fid", "moments"), ("sfid", "spatial_moments")):
    moments = samples.moments[kind], real.collected.moments[kind]
    assert METRICS[name].values(samples, real) == {name: distance_of_moments(*moments)}
  for how, kernel in ((("polynomial",), Polynomial()), (("rbf", 3.5), RBF(3.5))):
    drawn = kernel_distances(*features, kernel, 7, 20, 3)
    found = KID(*how, subsets=7, subset_size=20, metric_seed=3).values(samples, real)
    assert found == {"kid": drawn.mean(), "kid_std": drawn.std()}
  assert PrecisionRecall(4).values(samples, real) == prdc(*features, 4)._asdict()
  split = inception_scores(samples.logits, 3, True, 9)
  assert InceptionScore(3, True, 9).values(samples, real) == {"is": split.mean(), "is_std": split.std()}


def test_they_are_measured_where_they_are_asked_for_and_fid_is_of_inception_alone():
  assert {"fid", "sfid", "is", "kid", "prdc"} <= set(ON_REQUEST)
  assert {name for name in METRICS if METRICS[name].only == ("inception",)} == {"fid", "sfid", "is"}
