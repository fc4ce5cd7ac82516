"""Entries of reports as Markdown tables, each metric under its true name: FID of fewer than 50,000: FID@n."""

import string
import textwrap
from collections.abc import Mapping, Sequence, Set
from typing import Any

from etils import epath

from cm_jax.evaluation.conventions import FULL, USUAL
from cm_jax.evaluation.entries import by_seed, entries_of, metrics_of, named
from cm_jax.evaluation.metrics import METRICS, ON_REQUEST
from cm_jax.evaluation.records import Record
from cm_jax.storage.tables import markdown_table

Entries = Sequence[Mapping[str, Any]]


def data_sets(entries: Entries) -> list[str]:
  """Return the data sets of entries, each once."""
  return list(dict.fromkeys(entry["data"] for entry in entries))


def titles(entries: Entries) -> dict[str, str]:
  """Return the columns of metrics that entries of one data set have values of: title -> format.

  >>> entries = [{"data": "digits", "fd": 1.0, "class_entropy": None}]
  >>> titles(entries)
  {'FD-digits': '{fd:.3f}'}
  """
  found = {}
  for metric in metrics_of(entries).values():
    for title, form in metric.columns.items():
      names = [name for _, name, _, _ in string.Formatter().parse(form) if name]
      if any(entry.get(name) is not None for entry in entries for name in names):
        at = _at({int(n) for entry in entries if (n := entry.get(f"{names[0]}_n")) is not None})
        also = f" (n {{{names[0]}_n:,}})" if at == "@n" else ""
        of = next((entry[f"{names[0]}_of"] for entry in entries if f"{names[0]}_of" in entry), None)
        found[title.format(data=of or entries[0]["data"]) + at] = form + also
  return found


def title_of(name: str, counts: Sequence[int]) -> str:
  """Return what the value of a record is called, of so many samples.

  >>> title_of("fd_digits", [5000])
  'FD-digits'
  """
  about = named(name)
  if about is None:
    return name
  forms = METRICS[about.metric].columns.items()
  title = next((title for title, form in forms if about.value in _names([form])), name)
  published = about.metric in ON_REQUEST or about.label in USUAL
  return title.format(data=about.label) + (_at(set(counts)) if published else "")


def _at(counts: Set[int]) -> str:
  """Return what is added to a title where a value is of fewer than 50,000 samples."""
  few = sorted(count for count in counts if count < FULL)
  return "" if not few else f"@{few[0]}" if len(counts) == 1 else "@n"


def headings(tables: Mapping[str, Entries]) -> str:
  """Return what methods are compared by, on each data set."""
  return ", ".join(dict.fromkeys(heading(entries) for entries in tables.values()))


def heading(entries: Entries, value: str | None = None) -> str:
  """Return what entries of one data set are compared by, a value's name in reports; None: the first.

  >>> heading([{"data": "digits", "fd": 1.0}])
  'FD-digits'
  """
  shown = titles(entries)
  fitting = (title for title, form in shown.items() if value is None or value in _names([form]))
  return next(fitting, value or "samples")


def about(tables: Mapping[str, Entries], values: Set[str] | None = None) -> str:
  """Return what the metrics are, for the reader of a report; only those of some values, if they are given."""
  said = dict.fromkeys(
    metric.about.format(data=data)
    for metric in METRICS.values()
    for data, entries in tables.items()
    if metric in metrics_of(entries).values() and (values is None or not values.isdisjoint(metric.records))
  )
  if any("sampling_seeds" in entry for entries in tables.values() for entry in entries):
    said["seeds: of the samples; a value is the mean over those it was measured with."] = None
  return textwrap.fill(" ".join(said), 130)


def table(entries: Entries, more: Mapping[str, str] | None = None) -> str:
  """Return the entries, all of one data set, as a Markdown table with aligned columns.

  Args:
    entries: At least one.
    more: Further columns behind the method, title -> format.
  """
  columns = {
    "method": "{method}",
    **(more or {}),
    **({"seeds": "{seeds}"} if any("sampling_seeds" in entry for entry in entries) else {}),
    "NFE": "{nfe}",
    "sigmas": "{shown}",
    **titles(entries),
    "images/s": "{images_per_second:,.0f}",
    "train s": "{train_seconds:.0f}",
    "steps": "{train_steps:d}",
  }
  rows = [list(columns)]
  for entry in entries:
    seeds = ", ".join(map(str, entry.get("sampling_seeds", ()))) or None
    made = {"shown": _sigmas(entry["sigmas"]), "seeds": seeds}
    cells = {**dict.fromkeys(_names(columns.values())), **entry, **made}
    rows.append([_DASHES.format(form, **cells) for form in columns.values()])
  return markdown_table(rows)


def rows_of(records: Sequence[Record], run: epath.PathLike, last: Mapping[str, Any] | None = None) -> str:
  """Return the table of some records of a run, a row a set of samples; one table a data set.

  Args:
    records: Of samples, of real images, of speed.
    run: Its folder.
    last: The last line of its metrics.
  """
  general = [record for record in records if record.nfe is None and record.samples is None]
  speeds = {(r.nfe, r.sigmas, r.step, r.average): r for r in records if r.metric == "images_per_second"}
  sets: dict[tuple[Any, ...], list[Record]] = {}
  for record in records:
    if record not in general and record.metric != "images_per_second":
      key = (
        record.step,
        record.average,
        record.nfe,
        record.sigmas,
        str(record.sampler),
        record.seed,
        record.samples,
      )
      sets.setdefault(key, []).append(record)
  entries: list[dict[str, Any]] = []
  for (step, average, nfe, sigmas, _, seed, samples), found in sets.items():
    speed = speeds.get((nfe, sigmas, step, average))
    mine = [*general, *found, *([] if speed is None else [speed])]
    name = samples or epath.Path(run).name
    of_samples = {"of_step": step, "average": average, "of_seed": seed}
    entries += [{**entry, **of_samples} for entry in entries_of(name, mine, run, last)]
  several = {
    title: form
    for title, form, key in (("step", "{of_step}", "of_step"), ("average", "{average}", "average"))
    if len({entry[key] for entry in entries}) > 1
  }
  if len({entry["of_seed"] for entry in entries}) > 1:
    several["seed"] = "{of_seed}"
  parts = [[entry for entry in entries if entry["data"] == data] for data in data_sets(entries)]
  return "\n\n".join(table(part, several) for part in parts)


def over_seeds(records: Sequence[Record]) -> list[str]:
  """Return a line for each value that was measured with several seeds: all of them, their mean, the least."""
  lines = []
  for group in by_seed([record for record in records if named(record.metric)]):
    found = {seed: record.value for seed, record in group.items() if record.value is not None}
    if len(found) > 1:
      first, seeds = next(iter(group.values())), ", ".join(map(str, found))
      shown = ", ".join(f"{value:.4g}" for value in found.values())
      summary = f"mean {sum(found.values()) / len(found):.4g}, min {min(found.values()):.4g}"
      lines.append(f"{first.metric}, {first.nfe} NFE, seeds {seeds}: {shown}; {summary}")
  return lines


def _names(forms: Any) -> list[str]:
  return [name for form in forms for _, name, _, _ in string.Formatter().parse(form) if name]


def _sigmas(sigmas: Sequence[float] | None) -> str | None:
  if not sigmas:
    return None
  few = ", ".join(f"{sigma:g}" for sigma in sigmas)
  return few if len(sigmas) <= 3 else f"{sigmas[0]:g} .. {sigmas[-1]:g}"


class _Dashes(string.Formatter):
  """`str.format`, with "-" for what was not measured."""

  def format_field(self, value: Any, format_spec: str) -> str:
    return "-" if value is None else super().format_field(value, format_spec)


_DASHES = _Dashes()
