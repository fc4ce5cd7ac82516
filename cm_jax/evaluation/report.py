"""What a folder of runs came to: a table, a JSON list and the loss curves, derived from the runs' files."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation.entries import entries_of
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.records import Record, read
from cm_jax.evaluation.tables import about, data_sets, headings, table
from cm_jax.storage import lines, pictures, style, whole
from cm_jax.storage.run import RunFolder, identity, read_config

FIRST = ("edm", "cd", "ict", "ect")  # the runs of launch/demo.sh, in the order of what they build on


def report(folder: epath.PathLike) -> str:
  """Write `report.json`, `report.md` and `loss_curves.png` into a folder of runs; return the tables, and
  what is not in them.

  There is a table for each data set that samples were compared with; between them distances do not compare.
  What was measured with several seeds of samples is in it as their mean.

  Args:
    folder: Holds run folders with `config.json`, `evaluations.jsonl`, `metrics.jsonl`; those without
      evaluations are left out, and named.

  Raises:
    UserError: None of them was evaluated, or a file is not what it should be.
  """
  place = whole.place(folder)
  rank = lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)
  found = {name: place / name for name in sorted(evaluated(place), key=rank)}
  entries = [entry for name, run in found.items() for entry in run_entries(name, run)]
  if not entries:
    raise UserError(str(folder), "no evaluated run", "one or more run folders with evaluations")
  sets = data_sets(entries)
  tables = {data: [entry for entry in entries if entry["data"] == data] for data in sets}
  shown = "\n\n".join(map(table, tables.values()))
  whole.write(place / "report.json", json.dumps(entries, indent=2, allow_nan=False) + "\n")
  heading = f"# {headings(tables)} and speed by method"
  curves = "![loss curves](loss_curves.png)"
  whole.write(place / "report.md", f"{heading}\n\n{shown}\n\n{about(tables)}\n\n{curves}\n")
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
  place = whole.place(folder)
  names = [path.name for path in place.iterdir()] if place.is_dir() else []
  return sorted(name for name in names if RunFolder.at(place / name).evaluations.exists())


def run_entries(method: str, run: epath.PathLike) -> list[dict[str, Any]]:
  """Return a run's report entries, one a data set and number of network evaluations, of its newest records.

  Raises:
    UserError: A file is not what it should be.
  """
  return entries_of(method, own_records(run), run, last_metrics(run))


def last_metrics(run: epath.PathLike) -> dict[str, Any]:
  """Return the last line of a run's metrics; {} if there is none."""
  return (read_metrics(run) or [{}])[-1]


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


def plot_losses(metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: epath.PathLike) -> None:
  """Draw smoothed loss against step, one panel a run, logarithmic upwards unless it is negative; below it
  what was measured of the run's samples while it was trained, a panel a quantity."""
  names = [name for metric in METRICS.values() for name in metric.records]
  measured = [name for name in names if any(_curve(found, name) for found in metrics.values())]
  rows = 1 + len(measured)
  with pictures.figure(path, 4 * len(metrics), style.INCHES * rows) as figure:
    panels = figure.subplots(rows, len(metrics), squeeze=False)
    for (top, *below), (method, found) in zip(panels.T, metrics.items(), strict=True):
      top.set(title=method, xlabel="step", ylabel="loss of its objective")
      points = _curve(found, "loss")
      if points:
        steps, values = np.array(points, np.float64).T
        window = max(1, len(values) // 20)
        top.plot(steps, values, color=style.FAINT, linewidth=0.8, label="logged")
        top.plot(steps, smooth(values, window), color="C0", label=f"mean of {window}")
        pictures.log_axis(top, "y", values)
        top.legend()
      for panel, name in zip(below, measured, strict=True):
        points = _curve(found, name)
        if not points:
          panel.set_axis_off()
          continue
        panel.plot(*zip(*points, strict=True), color="C1", marker=".", label="of samples")
        pictures.log_axis(panel, "y", [value for _, value in points])
        panel.set(xlabel="step", ylabel=name)
        panel.legend()
    if len(metrics) > 1:
      figure.suptitle("each run's own loss: heights do not compare between panels")


def _curve(found: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
  """Return the steps and finite values of what lines of metrics have of a name."""
  known = [(line["step"], line[name]) for line in found if line.get(name) is not None]
  return [(step, value) for step, value in known if math.isfinite(value)]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
  """Return the running mean over the last `window` values (over fewer at the start).

  >>> smooth(np.array([2.0, 4.0, 6.0]), 2).tolist()
  [2.0, 3.0, 5.0]
  """
  sums = np.concatenate([[0.0], np.cumsum(values)])
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(ends - window, 0)
  return (sums[ends] - sums[starts]) / (ends - starts)
