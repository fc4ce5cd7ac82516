"""torch-fidelity's metrics of features and logits: FID, KID, precision and recall, Inception Score."""

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
    kid_kernel_rbf_sigma=10.0,
    prc_neighborhood=3,
    prc_batch_size=10000,
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
  return kid.Polynomial(
    int(found["degree"]) if given.kid_degree is None else given.kid_degree,
    gamma if given.kid_gamma is None else given.kid_gamma,
    float(found["coef0"]) if given.kid_coef0 is None else given.kid_coef0,
  )


def run_metrics(case: Case) -> Iterator[Result]:
  given = read_options(case)
  kernel = kernel_of(given)
  one, two, logits = (case.input(name) for name in ("feat1", "feat2", "logits"))
  assert one is not None and two is not None
  moments = {"1": Moments.of(one), "2": Moments.of(two)}
  subsets = (given.kid_subsets, given.kid_subset_size, given.rng_seed)

  @functools.cache
  def distances(kernel: kid.Kernel) -> np.ndarray:
    return kid.kernel_distances(one, two, kernel, *subsets)

  @functools.cache
  def precision_recall() -> list[float]:  # float32 numbers, and what Python makes of them
    found = prdc(one, two, given.prc_neighborhood, given.prc_batch_size)
    precision, recall = (float(np.float32(share)) for share in (found.precision, found.recall))
    return [precision, recall, 2 * precision * recall / max(1e-5, precision + recall)]

  def scores(splits: int, shuffle: bool, seed: int) -> np.ndarray:
    found = inception_scores(logits, splits, shuffle, seed)
    return np.array([found.mean(), found.std()])

  seed, splits, shuffle = given.rng_seed, given.isc_splits, given.samples_shuffle
  compute: dict[str, Callable[..., Any]] = {
    r"mu(?P<which>[12])(_peer)?": lambda which: moments[which].mean,
    r"sigma(?P<which>[12])(_peer)?": lambda which: moments[which].covariance,
    r"fid_(torch_fidelity|torch_fidelity_f64stats|pytorch_fid|edm|eigh_reference)": (
      lambda: distance_of_moments(moments["1"], moments["2"])
    ),
    r"kid_mean_f(32|64)in": lambda: distances(kernel).mean(),
    r"kid_std_f(32|64)in": lambda: distances(kernel).std(),
    r"kid_per_subset": lambda: distances(kernel),
    r"kid_rbf(?P<sigma>[\d.]+)_mean(_f(32|64)in)?": lambda sigma: distances(kid.RBF(float(sigma))).mean(),
    r"kid_rbf(?P<sigma>[\d.]+)_std(_f(32|64)in)?": lambda sigma: distances(kid.RBF(float(sigma))).std(),
    r"kid_indices(?P<which>[12])": (
      lambda which: kid.subset_indices(len(one), len(two), *subsets)[int(which) - 1]
    ),
    r"prc_(full|part)": precision_recall,
    r"isc_mean": lambda: scores(splits, shuffle, seed)[0],
    r"isc_std": lambda: scores(splits, shuffle, seed)[1],
    r"isc_noshuffle(_splits(?P<number>\d+))?": lambda number: scores(int(number or splits), False, seed),
    r"isc(_shuffle)?_splits(?P<number>\d+)": lambda number: scores(int(number), True, seed),
    r"isc_seed(?P<other>\d+)": lambda other: scores(splits, True, int(other)),
    r"isc_permutation_seed(?P<other>\d+)": (
      lambda other: np.random.RandomState(int(other)).permutation(len(logits))
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
