"""The records of a measurement."""

import math
from collections.abc import Mapping
from typing import Any

from cm_jax.evaluation.asked import Asked, settings
from cm_jax.evaluation.metrics.base import Known
from cm_jax.evaluation.records import Record


def real_records(asked: Asked, common: Mapping[str, Any]) -> list[Record]:
  """Measure real images by the metrics that say something of them; `common`: more fields of the records."""
  found = []
  for name, metric in asked.baselines.items():
    measured = metric.of_real(asked.real)
    if measured is not None:
      value, count = measured
      found.append(_record(name, value, {**asked.fields, **common, **settings(metric), "n": count}))
  return found


def sample_records(samples: Known, asked: Asked, common: Mapping[str, Any]) -> list[Record]:
  """Measure samples by every metric that is asked for; `common`: more fields of the records."""
  found = []
  for metric in asked.metrics.values():
    values = metric.values(samples, asked.real)
    fields = {**asked.fields, **common, **settings(metric), "n": samples.count}
    found += [_record(name, values[key], fields) for key, name in asked.recorded(metric).items()]
  return found


def _record(name: str, value: float, fields: Mapping[str, Any]) -> Record:
  return Record(metric=name, value=float(value) if math.isfinite(value) else None, **fields)
