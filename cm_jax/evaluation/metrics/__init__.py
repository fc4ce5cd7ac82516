"""Measurements of samples, by their names in `report.json`; methods are compared by the first.

A new one is a file and a line here: `evaluate` records it, reports have its columns.
"""

from cm_jax.evaluation.metrics.base import Metric
from cm_jax.evaluation.metrics.class_entropy import ClassEntropy
from cm_jax.evaluation.metrics.frechet import Frechet
from cm_jax.evaluation.metrics.nn_distance import NearestNeighbour

METRICS: dict[str, Metric] = {
  "fd": Frechet(),
  "class_entropy": ClassEntropy(),
  "nn_distance": NearestNeighbour(),
}

ON_REQUEST: tuple[str, ...] = ()  # measured only where they are asked for
