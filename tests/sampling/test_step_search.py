"""The search for noise levels: it finds a known best, evaluates nothing twice, and says what it did."""

import math

import pytest

from cm_jax.errors import UserError
from cm_jax.sampling.step_search import METHODS, StepSearch
from cm_jax.types import NoiseRange

NOISE = NoiseRange()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("best", [0.05, 0.821, 7.3])
def test_the_known_best_level_is_found_within_two_percent(method, best):
  calls = []

  def metric(sigmas, n):
    calls.append((sigmas, n))
    return 1 + math.log(sigmas[1] / best) ** 2

  found, history = StepSearch(NOISE, method=method, n=100)(metric)
  assert found.sigmas[0] == 80.0 and found.sigmas[1] == pytest.approx(best, rel=0.02)
  assert found.n == 100 and found.value == pytest.approx(1, abs=1e-3)
  assert len(set(calls)) == len(calls) == len(history) < 60


def test_a_second_valley_does_not_mislead_the_scan():
  """The lower valley is the narrower one, on the far side: ternary search, may miss it."""

  def metric(sigmas, n):
    u = math.log(sigmas[1])
    return min(1 + 0.3 * (u - math.log(0.02)) ** 2, 0.5 + 2 * (u - math.log(4.0)) ** 2)

  found, _ = StepSearch(NOISE, method="golden", n=100)(metric)
  assert found.sigmas[1] == pytest.approx(4.0, rel=0.02)


def test_several_levels_are_found_one_after_the_other():
  best = (80.0, 9.0, 1.2, 0.2)
  metric = lambda sigmas, n: sum(math.log(a / b) ** 2 for a, b in zip(sigmas, best, strict=True))
  found, _ = StepSearch(NOISE, nfe=4, rounds=2, n=10)(metric)
  assert all(a == pytest.approx(b, rel=0.03) for a, b in zip(found.sigmas, best, strict=True))
  assert list(found.sigmas) == sorted(found.sigmas, reverse=True)


def test_the_scan_takes_fewer_samples_and_the_answer_all_of_them():
  counts = []
  found, _ = StepSearch(NOISE, n=1000)(lambda sigmas, n: counts.append(n) or abs(math.log(sigmas[1])))
  assert counts[:8] == [250] * 8 and set(counts[8:]) == {1000} and found.n == 1000


def test_bad_requests_are_refused():
  with pytest.raises(UserError, match=r"^nfe = 9: expected 2 to 8"):
    StepSearch(NOISE, nfe=9)
  with pytest.raises(UserError, match=r"^method = grid"):
    StepSearch(NOISE, method="grid")
