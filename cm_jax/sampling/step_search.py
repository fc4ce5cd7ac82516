"""Search for the noise levels of few steps that make a metric smallest, one level at a time (CM section 6.1).

The metric crosses as a callable `metric(sigmas, n) -> float` over n samples; it must use the same noise for
every candidate (common random numbers), so that differences are the levels' and not chance.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

from cm_jax.errors import UserError
from cm_jax.types import NoiseRange

Metric = Callable[[tuple[float, ...], int], float]
METHODS = ("golden", "ternary")
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One candidate: its noise levels, the number of samples, the metric."""

  sigmas: tuple[float, ...]
  n: int
  value: float


@dataclasses.dataclass(frozen=True)
class StepSearch:
  """Greedy search: the levels below the first are optimised in turn, in ln sigma, between their neighbours.

  Args:
    noise: The range; the first level is sigma_max.
    nfe: Number of levels, 2 to 8.
    method: "golden": a coarse scan of each interval with a part of the samples, then golden section around
      its best point with all of them; it need not be unimodal. "ternary": the paper's ternary search, all
      samples from the start.
    n: Samples per evaluation.
    rounds: How often all levels are gone through; more than one matters for nfe > 2.
    tolerance: Relative, of sigma.
    scan: Points of the coarse scan.

  Raises:
    UserError: A field out of range.
  """

  noise: NoiseRange
  nfe: int = 2
  method: str = "golden"
  n: int = 5000
  rounds: int = 1
  tolerance: float = 0.02
  scan: int = 8

  def __post_init__(self):
    if not 2 <= self.nfe <= 8:
      raise UserError("nfe", self.nfe, "2 to 8")
    if self.method not in METHODS:
      raise UserError("method", self.method, " or ".join(METHODS))

  def initial(self) -> tuple[float, ...]:
    """Return the levels the search starts from: sigma_max, and levels evenly spread in ln sigma below it.

    >>> [round(sigma, 2) for sigma in StepSearch(NoiseRange(), nfe=3).initial()]
    [80.0, 2.34, 0.07]
    """
    low, high = math.log(self.noise.sigma_min), math.log(self.noise.sigma_max)
    below = (math.exp(high + (low - high) * k / self.nfe) for k in range(1, self.nfe))
    return (self.noise.sigma_max, *below)

  def __call__(
    self, metric: Metric, report: Callable[[Evaluation], None] | None = None
  ) -> tuple[Evaluation, list[Evaluation]]:
    """Return the best candidate at full n, and every evaluation in order; none is made twice.

    Args:
      metric: To be made small.
      report: Called with every evaluation as it is made.
    """
    history: list[Evaluation] = []
    known: dict[tuple[tuple[float, ...], int], float] = {}

    def evaluate(sigmas: tuple[float, ...], n: int) -> float:
      if (sigmas, n) not in known:
        known[sigmas, n] = metric(sigmas, n)
        history.append(Evaluation(sigmas, n, known[sigmas, n]))
        if report is not None:
          report(history[-1])
      return known[sigmas, n]

    sigmas = self.initial()
    for _, position in itertools.product(range(self.rounds), range(1, self.nfe)):
      above = math.log(sigmas[position - 1])
      below = math.log(sigmas[position + 1]) if position + 1 < self.nfe else math.log(self.noise.sigma_min)
      margin = 1e-3 * (above - below)
      before, after = sigmas[:position], sigmas[position + 1 :]
      at = lambda u, n, before=before, after=after: evaluate((*before, math.exp(u), *after), n)
      search = self._golden if self.method == "golden" else self._ternary
      found = search(at, below + margin, above - margin)
      sigmas = (*sigmas[:position], math.exp(found), *sigmas[position + 1 :])
    evaluate(sigmas, self.n)
    return min((e for e in history if e.n == self.n), key=lambda e: e.value), history

  def _golden(self, at: Callable[[float, int], float], low: float, high: float) -> float:
    points = [low + (high - low) * (k + 0.5) / self.scan for k in range(self.scan)]
    coarse = max(2, self.n // 4)
    best = min(range(self.scan), key=lambda k: at(points[k], coarse))
    a, b = points[best - 1] if best else low, points[best + 1] if best + 1 < self.scan else high
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    while b - a > self.tolerance:
      if at(c, self.n) < at(d, self.n):
        b, d = d, c
        c = b - _GOLDEN * (b - a)
      else:
        a, c = c, d
        d = a + _GOLDEN * (b - a)
    return (a + b) / 2

  def _ternary(self, at: Callable[[float, int], float], low: float, high: float) -> float:
    while high - low > self.tolerance:
      third = (high - low) / 3
      if at(low + third, self.n) < at(high - third, self.n):
        high -= third
      else:
        low += third
    return (low + high) / 2
