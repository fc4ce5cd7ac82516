"""KID: unbiased, its kernels by their formulas, torch-fidelity's subsets."""

import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics import kid

RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("kernel", [kid.Polynomial(), kid.Polynomial(2, 0.3, 0.5), kid.RBF(1.7)])
def test_the_estimate_is_the_sum_over_pairs(kernel):
  x, y = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(5, 4)) + 0.3
  if isinstance(kernel, kid.RBF):
    k = lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * kernel.sigma**2))
  else:
    k = lambda a, b: ((kernel.gamma or 1 / 4) * a @ b + kernel.coef0) ** kernel.degree
  within = lambda v: np.mean([k(a, b) for i, a in enumerate(v) for j, b in enumerate(v) if i != j])
  expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
  np.testing.assert_allclose(kid.unbiased_mmd2(x, y, kernel), expected, rtol=1e-12)


def test_equal_distributions_are_at_zero_and_shifted_ones_are_not():
  real, same, other = (RANDOM.normal(size=(2000, 8)) + shift for shift in (0, 0, 0.3))
  near = kid.kernel_distances(same, real, kid.Polynomial(), subsets=40, subset_size=200, seed=1)
  far = kid.kernel_distances(other, real, kid.Polynomial(), subsets=40, subset_size=200, seed=1)
  assert abs(near.mean()) < 4 * near.std() / np.sqrt(40) + 1e-3
  assert near.min() < 0 < far.min()
  assert far.mean() > 20 * abs(near.mean())


def test_subsets_are_drawn_in_turns():
  one, two = kid.subset_indices(30, 20, subsets=3, subset_size=6, seed=11)
  random = np.random.RandomState(11)
  for i in range(3):
    np.testing.assert_array_equal(one[i], random.choice(30, 6, replace=False))
    np.testing.assert_array_equal(two[i], random.choice(20, 6, replace=False))


def test_a_subset_larger_than_what_there_is_is_refused():
  with pytest.raises(UserError, match="subset_size.*31.*at most 30"):
    kid.kernel_distances(np.zeros((30, 2)), np.zeros((40, 2)), kid.Polynomial(), 5, 31, 0)
