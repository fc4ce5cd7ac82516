"""Options of torch-fidelity's metrics and names of outputs: each acts, by plain numpy, or fails by name."""

import itertools
import json

import numpy as np
import pytest

from tests.golden import runner

TOL = {"float32": {"default": 1e-6, "by_key": [["kid|isc", 1e-10], ["prc", 0]]}}
RANDOM = np.random.default_rng(23)
MIX = RANDOM.normal(size=(6, 6))
ONE, TWO = (RANDOM.normal(size=(n, 6)) @ MIX + shift for n, shift in ((41, 0.7), (57, 0.0)))
LOGITS = RANDOM.normal(size=(41, 5)).astype(np.float32) * 2


def verdicts(tmp_path, kwargs, **outputs):
  """Return whether each output passes, and the notes of what is no output."""
  (tmp_path / "F_other").mkdir()
  meta = {"peer": "torch-fidelity", "kwargs": kwargs, "tol": TOL}
  (tmp_path / "F_other" / "meta.json").write_text(json.dumps(meta))
  inputs = {"in_feat1": ONE.astype(np.float32), "in_feat2": TWO.astype(np.float32), "in_logits": LOGITS}
  stored = {f"out_{name}": np.asarray(value) for name, value in outputs.items()}
  np.savez(tmp_path / "F_other" / "io.npz", **inputs, **stored)
  rows = list(runner.run_case(runner.Case(tmp_path / "F_other")))
  return {row.what: row.passed for row in rows}, "".join(row.note for row in rows)


def kid(kernel, subsets, size, seed):
  """Of every subset, by double sums."""
  one, two = (rows.astype(np.float32).astype(np.float64) for rows in (ONE, TWO))
  draw, found = np.random.RandomState(seed), []
  for _ in range(subsets):
    x = one[draw.choice(len(one), size, replace=False)]
    y = two[draw.choice(len(two), size, replace=False)]
    within = lambda a: sum(kernel(a[i], a[j]) for i, j in itertools.permutations(range(size), 2))
    between = sum(kernel(a, b) for a, b in itertools.product(x, y))
    found.append((within(x) + within(y)) / (size * (size - 1)) - 2 * between / size**2)
  return np.array(found)


def isc(splits, seed=None):
  rows = LOGITS.astype(np.float64)
  rows = rows if seed is None else rows[np.random.RandomState(seed).permutation(len(rows))]
  p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
  parts = [p[i * len(p) // splits : (i + 1) * len(p) // splits] for i in range(splits)]
  scores = [np.exp((part * np.log(part / part.mean(0)[None])).sum(1).mean()) for part in parts]
  return np.array([np.mean(scores), np.std(scores)])


def precision_recall(k):
  one, two = (rows.astype(np.float32).astype(np.float64) for rows in (ONE, TWO))
  away = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))
  radius = lambda a: np.sort(away(a, a), 1)[:, k]
  precision = np.float32((away(one, two) <= radius(two)[None]).any(1).mean())
  recall = np.float32((away(two, one) <= radius(one)[None]).any(1).mean())
  p, r = float(precision), float(recall)
  return np.array([p, r, 2 * p * r / (p + r)])


def test_options_act_in_either_spelling(tmp_path):
  polynomial = lambda x, y: (0.05 * (x @ y) + 0.5) ** 2
  wanted = kid(polynomial, 4, 9, seed=31)
  outputs = {"kid_mean_f64in": wanted.mean(), "kid_std": wanted.std(), "kid_per_subset_f64": wanted}
  for number, spelling in enumerate(
    (
      {"kid_kernel": "poly degree 2 gamma 0.05 coef0 0.5"},
      {"kid_kernel": "poly", "kid_degree": 2, "kid_gamma": 0.05, "kid_coef0": 0.5},
      {"kid_kernel_poly_degree": 2, "kid_kernel_poly_gamma": 0.05, "kid_kernel_poly_coef0": 0.5},
    )
  ):
    place = tmp_path / str(number)
    place.mkdir()
    passed, _ = verdicts(
      place, {"kid_subsets": 4, "kid_subset_size": 9, "rng_seed": 31, **spelling}, **outputs
    )
    assert len(passed) == 3 and all(passed.values()), spelling


def test_names_of_outputs_act(tmp_path):
  wide = lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * 4.5**2))
  polynomial = lambda x, y: (x @ y / 6 + 1) ** 3
  passed, _ = verdicts(
    tmp_path,
    {"kid_subsets": 3, "kid_subset_size": 8, "rng_seed": 5, "isc_splits": 4, "prc_neighborhood": 2},
    **{"kid_rbf4.5_std_f64in": kid(wide, 3, 8, 5).std(), "kid_mean": kid(polynomial, 3, 8, 5).mean()},
    isc_mean=isc(4, 5)[0],
    isc_noshuffle_splits3=isc(3),
    isc_shuffle_splits6_seed8=isc(6, 8),
    isc_noshuffle_std=isc(4)[1],
    isc_permutation_seed8=np.random.RandomState(8).permutation(41),
    prc_part=precision_recall(2),
    prc_full_k6=precision_recall(6),
  )
  assert len(passed) == 9 and all(passed.values()), passed


def test_a_mean_is_the_peers_where_the_number_is_the_peers(tmp_path):
  passed, _ = verdicts(tmp_path, {}, mu1_peer=ONE.astype(np.float32).mean(0), mu2_f64=TWO.mean(0))
  assert passed == {"mu1_peer": True, "mu2": True}


@pytest.mark.parametrize(
  ("kwargs", "named"),
  [
    ({"kid_kernel": "laplace"}, "kid_kernel"),
    ({"prc_metric": "cosine"}, "prc_metric"),
    ({"kid_estimator": "biased"}, "kid_estimator"),
  ],
)
def test_what_is_not_known_fails_by_name(tmp_path, kwargs, named):
  passed, notes = verdicts(tmp_path, kwargs, kid_mean=1.0)
  assert not any(passed.values()) and named in notes


def test_wrong_numbers_fail(tmp_path):
  passed, _ = verdicts(tmp_path, {"isc_splits": 4}, isc_mean=isc(4, 2020)[0] + 1e-6, isc_std=isc(5, 2020)[1])
  assert passed == {"isc_mean": False, "isc_std": False}
