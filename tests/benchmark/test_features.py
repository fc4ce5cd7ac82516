"""The benchmark of what measures images: rows, what is refused, the same network in torch."""

import numpy as np
import pytest

from cm_jax.benchmark import features
from cm_jax.errors import UserError
from tests import needs


class Fake:
  image_shape = (8, 8, 1)

  def __init__(self, batch_size, seed):
    self.shapes = []

  def __call__(self, images, also=()):
    self.shapes.append(images.shape)


def test_rows_of_each_network(monkeypatch):
  made = {}
  fake = lambda batch_size, seed: made.setdefault("fake", Fake(batch_size, seed))
  monkeypatch.setitem(features.RANDOM, "inception-64", fake)
  monkeypatch.setattr(
    features,
    "in_turns",
    lambda programs, rounds, progress: {n: [0.5, 2, 1] for n in programs if not programs[n]()},
  )
  (row,) = features.measure(["inception-64"], None, None, 4, 3)
  assert made["fake"].shapes == [(1024, 8, 8, 1)]
  assert (row["name"], row["image_shape"], row["seconds_per_1000"], row["ratio"]) == (
    "inception-64",
    [8, 8, 1],
    1000 / 1024,
    None,
  )
  assert [column(row) for column in features.COLUMNS.values()] == ["inception-64", "8x8x1", "0.98", ""]


@pytest.mark.parametrize(
  ("names", "weights", "beside", "message"),
  [
    (["inceptoin"], None, None, "features = inceptoin: expected 'inception'"),
    (["inception-64"], None, "torch", "beside = torch: expected inception among the features"),
    (["digits", "inception"], "x.pth", None, "weights = x.pth: expected the features of one network"),
  ],
)
def test_what_cannot_be_measured_is_one_line(monkeypatch, names, weights, beside, message):
  monkeypatch.setitem(features.RANDOM, "inception-64", Fake)
  with pytest.raises(UserError, match=message):
    features.measure(names, weights, beside, 4, 1)


def test_beside_what_there_is_not():
  with pytest.raises(UserError, match="beside = tensorflow: expected one of: torch"):
    features._torch("tensorflow")


@pytest.mark.slow
def test_torch_holds_the_same_network():
  torch = needs.torch()
  measure = features.random_inception("inception", 8, 1)
  images = np.random.default_rng(2).integers(0, 256, (2, 299, 299, 3), np.uint8)
  expected = features.in_torch(torch, measure.params)(images)
  np.testing.assert_allclose(measure(images).features, expected, atol=2e-6 * np.abs(expected).max() * 10)
