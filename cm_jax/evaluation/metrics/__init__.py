"""Measurements of samples, by their names in `report.json`; methods are compared by the first.

A new one is a file and a line here: `evaluate` records it, reports have its columns.
"""

from cm_jax.evaluation.metrics.base import Metric
from cm_jax.evaluation.metrics.class_entropy import ClassEntropy
from cm_jax.evaluation.metrics.fid import FID, SpatialFID
from cm_jax.evaluation.metrics.frechet import Frechet
from cm_jax.evaluation.metrics.inception_score import InceptionScore
from cm_jax.evaluation.metrics.kid import KID
from cm_jax.evaluation.metrics.neighbours import PrecisionRecall
from cm_jax.evaluation.metrics.nn_distance import NearestNeighbour

METRICS: dict[str, Metric] = {
  "fd": Frechet(),
  "class_entropy": ClassEntropy(),
  "nn_distance": NearestNeighbour(),
  "fid": FID(),
  "sfid": SpatialFID(),
  "is": InceptionScore(),
  "kid": KID(),
  "prdc": PrecisionRecall(),
}

ON_REQUEST: tuple[str, ...] = ("fid", "sfid", "is", "kid", "prdc")  # measured only where they are asked for
LARGER_IS_BETTER: tuple[str, ...] = ("is", "prdc", "class_entropy")  # of the others' first value, smaller
