"""Records of a run, put together: one entry a data set and way of sampling, as reports and tables show it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from etils import epath

from cm_jax.evaluation.conventions import USUAL
from cm_jax.evaluation.metrics import METRICS, ON_REQUEST
from cm_jax.evaluation.metrics.base import Metric
from cm_jax.evaluation.records import Record
from cm_jax.evaluation.references import data_name
from cm_jax.storage.run import identity, read_config

# What may differ, beside the seed, between records whose mean over the seeds is taken.
_OF_EACH = {"value", "seed", "seconds", "images_per_second", "device", "versions", "commit"}
BESIDE = "inception"  # what is measured in its features stands beside FID, in the table of the data


class Named(NamedTuple):
  """What the name of a record says.

  Attributes:
    metric: Of `METRICS`, its key there.
    value: The value's name in reports.
    label: What the name calls the data or the features; None where it names neither.
    is_real: Whether it is of real images.
  """

  metric: str
  value: str
  label: str | None
  is_real: bool


def named(name: str) -> Named | None:
  """Return what the name of a record says; None of what no metric has.

  >>> named("fd_digits")
  Named(metric='fd', value='fd', label='digits', is_real=False)
  >>> named("nn_distance_real").is_real, named("loss")
  (True, None)
  """
  best: Named | None = None
  for key, metric in METRICS.items():
    for value, template in metric.records.items():
      for end, is_real in ((f"_{metric.baseline}", True), ("", False)):
        if is_real and not metric.baseline:
          continue
        match = re.fullmatch(_pattern(template + end), name)
        if match is None:
          continue
        label = next(iter(match.groups()), None)
        found = Named(key, value, label, is_real)
        if best is None or len(label or "") < len(best.label or ""):  # the template that says most of it
          best = found
  return best


def _pattern(template: str) -> str:
  return re.escape(template).replace(re.escape("{data}"), "(.+)")


Labels = Mapping[tuple[str | None, str | None], Set[str]]


def labels_of(records: Sequence[Record]) -> Labels:
  """Return what data or features the names of records call, by reference and hash of the network."""
  found: dict[tuple[str | None, str | None], set[str]] = {}
  for record in records:
    if (label := _label(record)) is not None:
      found.setdefault((record.reference, record.features_hash), set()).add(label)
  return found


def data_of(record: Record, labels: Labels) -> str | None:
  """Return the data set, or the published features, that a record belongs to; None: to any.

  A metric that names neither, such as the class entropy, stands with the distance that was measured by the
  same network against the same images.

  Args:
    record: What was measured.
    labels: Of all records.
  """
  about = named(record.metric)
  if about is None:
    return None
  if about.label not in (None, BESIDE) or record.reference is None:
    return about.label
  beside = labels.get((record.reference, record.features_hash), set())
  if about.label is None and len(beside) == 1 and BESIDE not in beside:
    return next(iter(beside))
  return data_name(record.reference)


def entries_of(
  method: str, records: Sequence[Record], run: epath.PathLike, last: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
  """Return the entries of records of a run, one a data set and number of network evaluations, of the newest.

  What was measured alike with several seeds of samples is their mean; "sampling_seeds" are all of a row.

  Args:
    method: What they are called.
    records: Oldest first.
    run: The run folder.
    last: The last line of its metrics.
  """
  stored = read_config(run) or {}
  digest = identity(stored) if stored else None
  last = last or {}
  samples = [record for record in records if (about := named(record.metric)) and not about.is_real]
  labels = labels_of(records)
  of = {id(record): data_of(record, labels) for record in records}
  data = {(of[id(record)], record.nfe) for record in samples}
  sets = sorted(
    {(name, nfe) for name, nfe in data if name is not None}, key=lambda pair: (pair[0], pair[1] or 0)
  )
  if not sets and samples:  # what says no more than its own name
    sets = sorted({("samples", record.nfe) for record in samples}, key=lambda pair: pair[1] or 0)
  alike = {id(record): group for group in by_seed(records) for record in group.values()}
  entries = []
  for name, nfe in sets:
    mine = [r for r in records if of[id(r)] in (None, name)]
    ours = {r.metric: r for r in mine if r.nfe == nfe}
    real = {r.metric: r for r in mine if r.nfe is None}
    groups = {metric: alike[id(r)] for metric, r in ours.items() if id(r) in alike and named(metric)}
    means = {metric: _mean(ours[metric], group) for metric, group in groups.items()}
    values, whose = _values({**ours, **means}, real, name)
    speed = next((r for r in reversed(mine) if (r.metric, r.nfe) == ("images_per_second", nfe)), None)
    if whose is None:
      continue
    seeds = sorted({seed for group in groups.values() for seed in group})
    entries.append(
      {
        "method": method,
        "data": name,
        "nfe": nfe,
        **({"sampling_seeds": seeds} if len(seeds) > 1 else {}),
        "sigmas": None if whose.sigmas is None else list(whose.sigmas),
        **values,
        "images_per_second": None if speed is None else speed.value,
        "train_seconds": last.get("seconds"),
        "train_steps": last.get("step"),
        "seed": stored.get("seed"),
        "config_sha256": digest,
        "commit": whose.commit,
      }
    )
  return entries


def by_seed(records: Sequence[Record]) -> list[dict[int, Record]]:
  """Return the records that say the seed of their samples, those together that are alike but for it: the
  newest of each seed, in the order of the seeds."""
  groups: dict[tuple[str, ...], dict[int, Record]] = {}
  for record in records:
    if record.seed is not None:
      groups.setdefault(_but_seed(record), {})[record.seed] = record
  return [dict(sorted(group.items())) for group in groups.values()]


def _but_seed(record: Record) -> tuple[str, ...]:
  return tuple(str(value) for name, value in vars(record).items() if name not in _OF_EACH)


def _mean(record: Record, group: Mapping[int, Record]) -> Record:
  """Return a record with the mean of its group; with none, where one of them has none."""
  values = [other.value for other in group.values() if other.value is not None]
  mean = sum(values) / len(values) if len(values) == len(group) else None
  return dataclasses.replace(record, value=mean)


def _values(
  samples: Mapping[str, Record], real: Mapping[str, Record], data: str
) -> tuple[dict[str, Any], Record | None]:
  """Return the values of an entry by their names in reports, and one of the records of its samples.

  Beside a value of published features its number of samples (NAME_n) and their name (NAME_of) are kept.
  """
  by_name: dict[tuple[str, bool], Record] = {}
  for record in (*real.values(), *samples.values()):
    about = named(record.metric)
    if about is not None:
      by_name[about.value, about.is_real] = record
  values: dict[str, Any] = {}
  whose: Record | None = None
  for key, metric in METRICS.items():
    found = [by_name.get((value, False)) for value in metric.records]
    if key in ON_REQUEST and not any(found):
      continue
    for value, one in zip(metric.records, found, strict=True):
      whose = whose or one
      values[value] = None if one is None else one.value
      label = None if one is None else _label(one)
      if one is not None and (key in ON_REQUEST or label in USUAL):
        values[f"{value}_n"] = one.n
      if label not in (None, data):
        values[f"{value}_of"] = label
    if metric.baseline:  # what concerns the real data has no nfe
      first = next(iter(metric.records))
      baseline = by_name.get((first, True))
      values[f"{first}_{metric.baseline}"] = None if baseline is None else baseline.value
  return values, whose


def _label(record: Record) -> str | None:
  about = named(record.metric)
  return None if about is None else about.label


def metrics_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
  """Return the metrics that entries have a value of."""
  has = lambda metric: any(entry.get(value) is not None for entry in entries for value in metric.records)
  return {key: metric for key, metric in METRICS.items() if has(metric)}
