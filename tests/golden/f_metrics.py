"""torch-fidelity's metrics of features and logits: FID, KID, precision and recall, Inception Score.

An output's name says what it is of: isc_noshuffle_splits7, prc_part_k5, kid_rbf10_mean_f64in; what it leaves
out is as the case's options have it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cm_jax.evaluation.metrics import kid
from cm_jax.evaluation.metrics.frechet import Moments, distance_of_moments
from cm_jax.evaluation.metrics.inception_score import inception_scores
from cm_jax.evaluation.metrics.neighbours import prdc
from tests.golden import options
from tests.golden.runner import Case, Handler, Result

# "poly degree 3 gamma 1/d coef0 1", "rbf sigma 10"
POLYNOMIAL = (
  r"poly(?:nomial)? degree (?P<degree>\d+) gamma (?P<gamma>1/d|[\d.e+-]+) coef0 (?P<coef0>[\d.e+-]+)"
)
SCORE = (
  r"isc(_(?P<shuffle>(no)?shuffle))?(_splits(?P<splits>\d+))?(_seed(?P<seed>\d+))?(_(?P<what>mean|std))?"
)
RBF = r"rbf(?: sigma)? (?P<sigma>[\d.e+-]+)"


def is_metrics(case: Case) -> bool:
  return case.name.startswith("F_") and case.input("feat1") is not None


def read_options(case: Case) -> Any:
  return options.read(
    case.kwargs,
    case.name,
    kid_subsets=100,
    kid_subset_size=1000,
    kid_kernel="poly degree 3 gamma 1/d coef0 1",
    kid_degree=None,
    kid_gamma=None,
    kid_coef0=None,
    kid_kernel_poly_degree=None,  # the same three, as 0.4.0 calls them
    kid_kernel_poly_gamma=None,
    kid_kernel_poly_coef0=None,
    kid_kernel_rbf_sigma=10.0,
    prc_neighborhood=3,
    prc_batch_size=10000,
    save_cpu_ram=False,
    rng_seed=2020,
    isc_splits=10,
    samples_shuffle=True,
  )


def kernel_of(given: Any) -> kid.Kernel:
  """Return the kernel that `kid_kernel` says in words, or torch-fidelity's own options."""
  words = str(given.kid_kernel).lower()
  if words == "rbf":
    return kid.RBF(given.kid_kernel_rbf_sigma)
  if found := re.fullmatch(RBF, words):
    return kid.RBF(float(found["sigma"]))
  found = re.fullmatch(
    POLYNOMIAL, "poly degree 3 gamma 1/d coef0 1" if words in ("poly", "polynomial") else words
  )
  if not found:
    raise options.UnknownOption(f"kid_kernel = {given.kid_kernel!r} is not known here")
  gamma = None if found["gamma"] == "1/d" else float(found["gamma"])
  first = lambda *values: next((value for value in values if value is not None), None)
  return kid.Polynomial(
    first(given.kid_degree, given.kid_kernel_poly_degree, int(found["degree"])),
    first(given.kid_gamma, given.kid_kernel_poly_gamma, gamma),
    first(given.kid_coef0, given.kid_kernel_poly_coef0, float(found["coef0"])),
  )


def run_metrics(case: Case) -> Iterator[Result]:
  given = read_options(case)
  kernel = kernel_of(given)
  one, two, logits = (case.input(name) for name in ("feat1", "feat2", "logits"))
  assert one is not None and two is not None
  of = {"1": one, "2": two}
  moments = {which: Moments.of(features) for which, features in of.items()}
  # torch-fidelity's mean is of the features' own type, its covariance float64
  theirs = {which: dataclasses.replace(moments[which], mean=of[which].mean(0)) for which in of}
  subsets = (given.kid_subsets, given.kid_subset_size, given.rng_seed)

  @functools.cache
  def distances(sigma: str | None) -> np.ndarray:
    return kid.kernel_distances(one, two, kid.RBF(float(sigma)) if sigma else kernel, *subsets)

  def of_distances(sigma: str | None, what: str) -> Any:
    return {"mean": np.mean, "std": np.std, "per_subset": np.array}[what](distances(sigma))

  @functools.cache
  def precision_recall(
    neighbours: str | None,
  ) -> list[float]:  # float32 numbers, and what Python makes of them
    found = prdc(one, two, int(neighbours or given.prc_neighborhood), given.prc_batch_size)
    precision, recall = (float(np.float32(share)) for share in (found.precision, found.recall))
    return [precision, recall, 2 * precision * recall / max(1e-5, precision + recall)]

  def score(shuffle: str | None, splits: str | None, seed: str | None, what: str | None) -> Any:
    shuffles = given.samples_shuffle if shuffle is None else shuffle == "shuffle"
    found = inception_scores(logits, int(splits or given.isc_splits), shuffles, int(seed or given.rng_seed))
    both = {"mean": found.mean(), "std": found.std()}
    return both[what] if what else np.array(list(both.values()))

  compute: dict[str, Callable[..., Any]] = {
    r"mu(?P<which>[12])": lambda which: moments[which].mean,
    r"mu(?P<which>[12])_peer": lambda which: theirs[which].mean,
    r"sigma(?P<which>[12])(_peer)?": lambda which: moments[which].covariance,
    r"fid_torch_fidelity": lambda: distance_of_moments(theirs["1"], theirs["2"]),
    r"fid_(torch_fidelity_f64stats|pytorch_fid|edm|eigh_reference)": (
      lambda: distance_of_moments(moments["1"], moments["2"])
    ),
    r"kid(_rbf(?P<sigma>[\d.]+))?_(?P<what>mean|std|per_subset)(_f(32|64)in)?": of_distances,
    r"kid_indices(?P<which>[12])": (
      lambda which: kid.subset_indices(len(one), len(two), *subsets)[int(which) - 1]
    ),
    r"prc_(full|part)(_k(?P<neighbours>\d+))?": precision_recall,
    SCORE: score,
    r"isc_permutation_seed(?P<seed>\d+)": (
      lambda seed: np.random.RandomState(int(seed)).permutation(len(logits))
    ),
  }
  for name in case.outputs():
    if re.fullmatch(r"(mu|sigma)[12]_peer_dtype_is(_f32|_f64)?", name):
      yield Result(name, is_input=True)  # what the peer's arrays were, not what they say
      continue
    for pattern, value in compute.items():
      if found := re.fullmatch(pattern, name):
        yield Result(name, functools.partial(value, **found.groupdict()))


HANDLERS = [Handler(is_metrics, run_metrics, "metrics", ("kwargs",))]
