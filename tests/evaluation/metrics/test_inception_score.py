"""The Inception Score by its formula, in any split and order."""

import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics.inception_score import inception_scores

LOGITS = np.random.default_rng(2).normal(size=(53, 6)) * 3


@pytest.mark.parametrize(
  ("splits", "shuffle", "seed"), [(1, False, 0), (4, False, 0), (7, True, 5), (53, True, 2020)]
)
def test_it_is_the_formula(splits, shuffle, seed):
  order = np.random.RandomState(seed).permutation(53) if shuffle else np.arange(53)
  p = np.exp(LOGITS[order])
  p /= p.sum(1, keepdims=True)
  expected = []
  for i in range(splits):
    part = p[i * 53 // splits : (i + 1) * 53 // splits]
    expected.append(np.exp((part * np.log(part / part.mean(0, keepdims=True))).sum(1).mean()))
  np.testing.assert_allclose(inception_scores(LOGITS, splits, shuffle, seed), expected, rtol=1e-12)


def test_sure_and_varied_is_the_number_of_classes_and_unsure_is_one():
  sure = 1e4 * np.eye(5)[np.arange(50) % 5]  # everything else underflows
  np.testing.assert_allclose(inception_scores(sure, splits=2, shuffle=False), [5, 5])
  np.testing.assert_allclose(inception_scores(np.zeros((20, 5)), splits=2), [1, 1])


def test_more_splits_than_images_are_refused():
  with pytest.raises(UserError, match="splits.*54.*1 to 53"):
    inception_scores(LOGITS, splits=54)
