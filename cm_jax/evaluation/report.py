"""What a folder of runs came to: a table, a JSON list and the loss curves, derived from the runs' files."""

import json
import math
import re
import string
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.records import Record, read
from cm_jax.storage import lines, pictures, whole
from cm_jax.storage.run import RunFolder, identity, read_config
from cm_jax.storage.tables import markdown_table

FIRST = ("edm", "cd", "ict", "ect")  # the runs of launch/demo.sh, in the order of what they build on


def report(folder: epath.PathLike) -> str:
  """Write `report.json`, `report.md` and `loss_curves.png` into a folder of runs; return the tables, and
  what is not in them.

  There is a table for each data set that samples were compared with; between them distances do not compare.

  Args:
    folder: Holds run folders with `config.json`, `evaluations.jsonl`, `metrics.jsonl`; those without
      evaluations are left out, and named.

  Raises:
    UserError: None of them was evaluated, or a file is not what it should be.
  """
  place = epath.Path(folder)
  rank = lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)
  found = {name: place / name for name in sorted(evaluated(place), key=rank)}
  entries = [entry for name, run in found.items() for entry in run_entries(name, run)]
  if not entries:
    raise UserError(str(folder), "no evaluated run", "one or more run folders with evaluations")
  sets = data_sets(entries)
  shown = "\n\n".join(table([entry for entry in entries if entry["data"] == data]) for data in sets)
  whole.write(place / "report.json", json.dumps(entries, indent=2, allow_nan=False) + "\n")
  heading = f"# {headings(sets)} and speed by method"
  curves = "![loss curves](loss_curves.png)"
  whole.write(place / "report.md", f"{heading}\n\n{shown}\n\n{about(sets)}\n\n{curves}\n")
  plot_losses({name: read_metrics(run) for name, run in found.items()}, place / "loss_curves.png")
  missing = left_out(place, {entry["method"] for entry in entries})
  return "\n".join([shown, *([""] if missing else []), *(f"left out: {reason}" for reason in missing)])


def left_out(folder: epath.Path, shown: Collection[str]) -> list[str]:
  """Return what of a folder of runs is not in its report, each with the reason.

  Args:
    folder: The folder of runs.
    shown: Names of the runs that are in it.
  """
  reasons = []
  for path in sorted(folder.iterdir()):
    run = RunFolder.at(path)
    if not path.is_dir() or not (run.config.exists() or run.evaluations.exists()):
      continue
    if not run.evaluations.exists():
      reasons.append(f"{path.name}, which was not evaluated")
      continue
    others = len(read(run.evaluations)) - len(own_records(path))
    if others:
      reasons.append(f"{others} record(s) of {path.name} that are of another config than the run's")
    if path.name not in shown:
      reasons.append(f"{path.name}, which holds no measurement of its samples")
  return reasons


def own_records(run: epath.PathLike) -> list[Record]:
  """Return the records of a run, but for those of another config than its own; a folder without a config
  holds what was measured of weights."""
  stored = read_config(run) or {}
  digest = identity(stored) if stored else None
  records = read(RunFolder.at(run).evaluations)
  return [record for record in records if digest is None or record.config_sha256 in (None, digest)]


def evaluated(folder: epath.PathLike) -> list[str]:
  """Return the names of the run folders in a folder that hold evaluations, sorted."""
  place = epath.Path(folder)
  names = [path.name for path in place.iterdir()] if place.is_dir() else []
  return sorted(name for name in names if RunFolder.at(place / name).evaluations.exists())


def run_entries(method: str, run: epath.PathLike) -> list[dict[str, Any]]:
  """Return a run's report entries, one a data set and number of network evaluations, of its newest records.

  Raises:
    UserError: A file is not what it should be.
  """
  return entries_of(method, own_records(run), run)


def rows_of(records: Sequence[Record], run: epath.PathLike) -> str:
  """Return the table of some records of a run, a row a sampler."""
  real = [record for record in records if record.nfe is None]
  by_sampler: dict[tuple[Any, ...], list[Record]] = {}
  for record in records:
    if record.nfe is not None:
      by_sampler.setdefault((record.nfe, record.sigmas), []).append(record)
  name = epath.Path(run).name
  return table([entry for found in by_sampler.values() for entry in entries_of(name, [*real, *found], run)])


def entries_of(method: str, records: Sequence[Record], run: epath.PathLike) -> list[dict[str, Any]]:
  """Return the entries of records of a run; see `run_entries`."""
  stored = read_config(run) or {}
  digest = identity(stored) if stored else None
  newest = {(record.metric, record.nfe): record for record in records}
  last = (read_metrics(run) or [{}])[-1]
  measured = {(_data_of(name), nfe) for name, nfe in newest if nfe is not None}
  entries = []
  for data, nfe in sorted((data, nfe) for data, nfe in measured if data is not None):
    values, whose = {}, None
    for key, metric in METRICS.items():
      name = metric.record.format(data=data)
      found = newest.get((name, nfe))
      whose = whose or found
      values[key] = None if found is None else found.value
      if metric.baseline:  # what concerns the real data has no nfe
        real = newest.get((f"{name}_{metric.baseline}", None))
        values[f"{key}_{metric.baseline}"] = None if real is None else real.value
    speed = newest.get(("images_per_second", nfe))
    assert whose is not None
    entries.append(
      {
        "method": method,
        "data": data,
        "nfe": nfe,
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


def _data_of(name: str) -> str | None:
  """Return the data set that the name of a record of samples holds."""
  for metric in METRICS.values():
    if "{data}" in metric.record:
      match = re.fullmatch(re.escape(metric.record).replace(re.escape("{data}"), "(.+)"), name)
      if match:
        return match[1]
  return None


def data_sets(entries: Sequence[Mapping[str, Any]]) -> list[str]:
  """Return the data sets of entries, each once."""
  return list(dict.fromkeys(entry["data"] for entry in entries))


def headings(sets: Sequence[str]) -> str:
  """Return what methods are compared by, on each data set.

  >>> headings(["digits"])
  'FD-digits'
  """
  title = next(iter(next(iter(METRICS.values())).columns))
  return ", ".join(dict.fromkeys(title.format(data=data) for data in sets))


def about(sets: Sequence[str]) -> str:
  """Return what the metrics are, for the reader of a report."""
  said = dict.fromkeys(metric.about.format(data=data) for metric in METRICS.values() for data in sets)
  return textwrap.fill(" ".join(said), 130)


def read_metrics(run: epath.PathLike) -> list[dict[str, Any]]:
  """Return the lines of a run's `metrics.jsonl` in the order of their steps.

  Where a run was resumed from before its last line, the lines it had written from there on are left out.

  Raises:
    UserError: A line that is no JSON, unless it is an unfinished last one.
  """
  path = RunFolder.at(run).metrics
  kept: list[dict[str, Any]] = []
  for number, values in enumerate(lines.read(path), 1):
    if "step" not in values:
      raise UserError(f"{path}, line {number}", sorted(values), "a JSON object with a step")
    while kept and kept[-1]["step"] >= values["step"]:
      kept.pop()
    kept.append(values)
  return kept


def table(entries: Sequence[Mapping[str, Any]]) -> str:
  """Return the entries, all of one data set, as a Markdown table with aligned columns."""
  columns = {
    "method": "{method}",
    "NFE": "{nfe}",
    "sigmas": "{shown}",
    **{title: form for metric in METRICS.values() for title, form in metric.columns.items()},
    "images/s": "{images_per_second:,.0f}",
    "train s": "{train_seconds:.0f}",
    "steps": "{train_steps:d}",
  }
  rows = [[title.format(data=entries[0]["data"]) for title in columns]]
  for entry in entries:
    cells = {**entry, "shown": _sigmas(entry["sigmas"])}
    rows.append([_DASHES.format(form, **cells) for form in columns.values()])
  return markdown_table(rows)


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


def plot_losses(metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: epath.PathLike) -> None:
  """Draw smoothed loss against step, one panel a run, logarithmic upwards."""
  figure = pictures.new_figure(4 * len(metrics), 3.4)
  panels = figure.subplots(1, len(metrics), squeeze=False)[0]
  for panel, (method, found) in zip(panels, metrics.items(), strict=True):
    losses = [(line["step"], line["loss"]) for line in found if line.get("loss") is not None]
    points = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    panel.set(title=method, xlabel="step", ylabel="loss of its objective")
    if points:
      steps, values = np.array(points, np.float64).T
      window = max(1, len(values) // 20)
      panel.plot(steps, values, color="0.8", linewidth=0.8, label="logged")
      panel.plot(steps, smooth(values, window), color="C0", label=f"mean of {window}")
      pictures.log_axis(panel, "y", values)
      panel.legend(frameon=False, fontsize="small")
  if len(metrics) > 1:
    figure.suptitle("each run's own loss: heights do not compare between panels", fontsize="small")
  pictures.save_figure(figure, path)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
  """Return the running mean over the last `window` values (over fewer at the start).

  >>> smooth(np.array([2.0, 4.0, 6.0]), 2).tolist()
  [2.0, 3.0, 5.0]
  """
  sums = np.concatenate([[0.0], np.cumsum(values)])
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(ends - window, 0)
  return (sums[ends] - sums[starts]) / (ends - starts)
