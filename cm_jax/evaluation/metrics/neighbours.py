"""Precision, recall, density and coverage: whose balls of nearest neighbours hold whom.

The k-th neighbour of an image among its own set, itself left out, is the radius of its ball. Distances are
products of matrices in float64 on the device, block by block; what lies closer to the edge of a ball than
their rounding is decided by the sum of squared differences, so that the verdict is exact, ties too.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics.base import Known, Real
from cm_jax.types import Array

BLOCK = 1024  # rows at a time: memory is BLOCK x M x 8 bytes, a few times over
_ROUNDING = 1e-11  # of a squared distance, relative to the squared norms: 1e5 units in the last place
_SPARE = 8  # neighbours beyond the k-th that are looked at exactly
_GROUP = (
  64  # columns of which only the smallest is sorted at first: sorting them all costs ten times the product
)


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """What `prdc` says of samples; larger is better.

  Args:
    neighbours: k of `prdc`.
  """

  neighbours: int = 3

  records: ClassVar[Mapping[str, str]] = {
    name: f"{name}_{{data}}" for name in ("precision", "recall", "density", "coverage")
  }
  baseline: ClassVar[str] = ""
  needs: ClassVar[tuple[str, ...]] = ("features",)
  needs_real: ClassVar[tuple[str, ...]] = ("features",)
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ()
  columns: ClassVar[Mapping[str, str]] = {
    "precision, recall": "{precision:.3f}, {recall:.3f}",
    "density, coverage": "{density:.3f}, {coverage:.3f}",
  }
  about: ClassVar[str] = (
    "precision, recall: share of the samples among the real images, and of these among the samples; "
    "density, coverage: how deep among them, and how many of them are met; in the features of {data}."
  )

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return them of samples."""
    features = np.asarray(real.collected.features, np.float64)
    radii = real.remembered(f"radii {self.neighbours}", lambda: squared_radii(features, self.neighbours))
    return prdc(samples.features, features, self.neighbours, real_radii=radii)._asdict()

  def of_real(self, real: Real) -> None:
    """Return None: nothing is measured of real images."""


class Prdc(NamedTuple):
  """What `prdc` returns.

  Attributes:
    precision: Share of the samples that lie in a ball of the real images (Kynkaanniemi et al. 2019, eq. 1).
    recall: Share of the real images that lie in a ball of the samples.
    density: Balls of real images that a sample lies in, on average, over k (Naeem et al. 2020, eq. 3).
    coverage: Share of the real images whose ball holds a sample (eq. 4).
  """

  precision: float
  recall: float
  density: float
  coverage: float

  @property
  def f_score(self) -> float:
    """The harmonic mean of precision and recall, 0 if both are."""
    both = self.precision + self.recall
    return 2 * self.precision * self.recall / both if both else 0.0


def prdc(
  samples: np.ndarray,
  real: np.ndarray,
  neighbours: int = 3,
  block: int = BLOCK,
  real_radii: np.ndarray | None = None,
) -> Prdc:
  """Return precision, recall, density and coverage of samples.

  A ball's edge belongs to it, as in the official code of precision and recall and in torch-fidelity; the
  official code of density and coverage leaves it out, which differs for equal distances only.
  ADM's evaluator rounds distances to float16 where they fit, so its numbers differ by those near an edge.

  Args:
    samples, real: Features, [N, D] and [M, D]; N, M > neighbours.
    neighbours: k, at least 1.
    block: Samples at a time.
    real_radii: `squared_radii` of real, where they are known already.

  Raises:
    UserError: No more images than neighbours.

  >>> prdc(np.array([[0.0], [1.0], [9.0]]), np.array([[0.0], [1.0], [2.0]]), neighbours=1)
  Prdc(precision=0.6666666666666666, recall=1.0, density=1.6666666666666667, coverage=1.0)
  """
  smaller = min(len(samples), len(real))
  if not 1 <= neighbours < smaller:
    raise UserError("neighbours", neighbours, f"1 to {smaller - 1}: less than the images there are")
  samples, real = np.asarray(samples, np.float64), np.asarray(real, np.float64)
  radii = squared_radii(real, neighbours, block) if real_radii is None else real_radii
  sample_radii = squared_radii(samples, neighbours, block)
  balls = np.zeros(len(samples), np.int64)
  covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
  for start in range(0, len(samples), block):
    rows = slice(start, start + block)
    in_real = inside(samples[rows], real, radii[None])
    in_samples = inside(samples[rows], real, sample_radii[rows, None])
    balls[rows] = in_real.sum(1)
    covered |= in_real.any(0)
    recalled |= in_samples.any(0)
  density = float(balls.mean() / neighbours)
  return Prdc(float((balls > 0).mean()), float(recalled.mean()), density, float(covered.mean()))


def squared_radii(features: np.ndarray, neighbours: int, block: int = BLOCK) -> np.ndarray:
  """Return the squared distance of each row to its k-th neighbour among the others, float64 [N].

  >>> squared_radii(np.array([[0.0], [1.0], [3.0]]), neighbours=1).tolist()
  [1.0, 1.0, 4.0]
  """
  found = []
  for start in range(0, len(features), block):
    rows = features[start : start + block]
    near = _nearest(rows, features, min(neighbours + 1 + _SPARE, len(features)))
    exact = ((rows[:, None] - features[near]) ** 2).sum(2)
    found.append(np.sort(exact, 1)[:, neighbours])  # the row itself is among them, at distance 0
  return np.concatenate(found)


def inside(rows: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
  """Say which rows lie in which balls, bool [n, m]: |row - centre|^2 <= radius^2, exactly.

  Args:
    rows, centres: Features, float64 [n, D] and [m, D].
    radii: Squared, float64, [1, m] for balls about the centres or [n, 1] about the rows.
  """
  with jax.enable_x64(True):
    verdict, unsure = (np.array(part) for part in _compare(rows, centres, radii))
  edges = np.broadcast_to(radii, verdict.shape)
  where = np.argwhere(unsure)
  for part in np.split(where, range(BLOCK, len(where), BLOCK)):
    i, j = part.T
    verdict[i, j] = ((rows[i] - centres[j]) ** 2).sum(1) <= edges[i, j]
  return verdict


def _nearest(rows: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
  with jax.enable_x64(True):
    return np.asarray(_top(rows, features, count))


@functools.partial(jax.jit, static_argnames="count")
def _top(rows: Array, features: Array, count: int) -> Array:
  """Return the numbers of the nearest features, [n, count]: in the groups whose nearest are nearest."""
  squared = _squared(rows, features)[0]
  squared = jnp.pad(squared, ((0, 0), (0, -len(features) % _GROUP)), constant_values=jnp.inf)
  squared = squared.reshape(len(rows), -1, _GROUP)
  groups = jax.lax.top_k(-squared.min(2), min(count, squared.shape[1]))[1]
  few = jnp.take_along_axis(squared, groups[:, :, None], 1).reshape(len(rows), -1)
  found = jax.lax.top_k(-few, count)[1]
  return jnp.take_along_axis(groups, found // _GROUP, 1) * _GROUP + found % _GROUP


@jax.jit
def _compare(rows: Array, centres: Array, radii: Array) -> tuple[Array, Array]:
  squared, norms = _squared(rows, centres)
  return squared <= radii, jnp.abs(squared - radii) <= _ROUNDING * norms


def _squared(a: Array, b: Array) -> tuple[Array, Array]:
  """Return the squared distances, and the squared norms that their rounding goes with, [n, m] both."""
  norms = jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1)[None]
  return norms - 2 * jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST), norms
