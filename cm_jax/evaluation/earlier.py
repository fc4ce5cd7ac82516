"""What was measured before in the same way, so that it is not measured again."""

from collections.abc import Mapping, Sequence
from typing import Any

from cm_jax.evaluation.asked import Asked, settings
from cm_jax.evaluation.records import Record

# What must agree, beside the metric, for a measurement to count as made before.
SAME = (
  *("n", "nfe", "sigmas", "sampler", "seed", "reference", "features_hash"),
  *("step", "average", "config_sha256", "samples", "quantiser"),
)


def earlier(before: Sequence[Record], asked: Asked, fields: Mapping[str, Any]) -> list[Record]:
  """Return the records of a set of samples that was measured by every metric as is asked for, the newest of
  each; with those of the real images. None if one is missing.

  Args:
    before: The records of a run.
    asked: By what samples are measured.
    fields: Of the records that would be made.
  """
  key = _key({**dict.fromkeys(SAME), **asked.fields, "n": asked.num, **fields})
  same = {
    record.metric: record for record in before if _key(vars(record)) == key and _same_data(record, asked)
  }
  found = []
  for metric in asked.metrics.values():
    for name in asked.recorded(metric).values():
      record = same.get(name)
      if record is None or any(vars(record)[field] != value for field, value in settings(metric).items()):
        return []
      found.append(record)
  by = lambda record: (record.reference, record.features_hash)
  ours = (asked.real.reference.name, asked.extractor.hash)
  real = {r.metric: r for r in before if r.metric in asked.baselines and by(r) == ours}
  sampler = (fields.get("nfe"), fields.get("sigmas"))
  speeds = [r for r in before if r.metric == "images_per_second" and (r.nfe, r.sigmas) == sampler]
  return [*real.values(), *found, *speeds[-1:]]


def _same_data(record: Record, asked: Asked) -> bool:
  """Whether a record's reference is what has its name today, and its images came to the network as now; those
  of before there was a hash or a resize do not say."""
  is_same = record.reference_hash in (None, asked.real.reference.hash)
  return is_same and record.resize in (None, asked.extractor.resize)


def _key(fields: Mapping[str, Any]) -> tuple[str, ...]:
  return tuple(str(fields[name]) for name in SAME)
