"""Methods side by side: several seeds each, a table of mean and spread, a picture."""

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.entries import metrics_of
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.report import evaluated, run_entries
from cm_jax.evaluation.tables import about, data_sets, heading
from cm_jax.storage import bounded, pictures, style, whole
from cm_jax.storage.run import RunFolder
from cm_jax.storage.tables import markdown_table

SIDE = 4  # of the square of samples that a method is shown by
SQUARE = 2.7  # inches that it takes with its title: more than 64 pixels a sample
ACROSS = 5  # methods in a row of the picture
_ABOUT = """{what}, mean and standard deviation over the training seeds (one number: one seed). {about}
Every student has the same network, batch size and number of training images; seconds are of training, with
{jobs} trainings at a time on this machine."""


def compare(folder: epath.PathLike, jobs: int = 1, metric: str | None = None) -> str:
  """Write `comparison.json`, `comparison.md` and `comparison.png` into a folder and return the tables.

  There is a table for each data set that samples were compared with; between them distances do not compare.

  Args:
    folder: Holds METHOD/SEED/ run folders with `config.json`, `evaluations.jsonl`, `metrics.jsonl`; the
      methods are shown in the order of `order.txt` there if it exists, else by name.
    jobs: How many trainings ran at a time, for the text.
    metric: What they are compared by, the name of a value in reports such as "fd" or "recall"; None: the
      first that was measured on a data set.

  Raises:
    UserError: No evaluated run in the folder; nothing of that name in them.
  """
  place = whole.place(folder)
  methods = _methods(place)
  entries = [
    {**entry, "run": f"{method}/{seed}"}
    for method in methods
    for seed in evaluated(place / method)
    for entry in run_entries(method, place / method / seed)
  ]
  if not entries:
    raise UserError(str(folder), "no evaluated run", "run folders METHOD/SEED with evaluations")
  of = {data: [e for e in entries if e["data"] == data] for data in data_sets(entries)}
  keys = {data: key for data, mine in of.items() if (key := _key(mine, metric)) is not None}
  if not keys:
    known = dict.fromkeys(name for m in metrics_of(entries).values() for name in m.records)
    raise UserError("metric", metric, one_of(known, metric))
  tables = {data: summarize(of[data], methods, key) for data, key in keys.items()}
  shown = "\n\n".join(_table(rows, keys[data]) for data, rows in tables.items())
  content = {"rows": [row for rows in tables.values() for row in rows], "entries": entries}
  whole.write(place / "comparison.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
  what = {data: heading(of[data], key) for data, key in keys.items()}
  meant = about({data: of[data] for data in keys}, set(keys.values()))
  text = textwrap.fill(
    _ABOUT.format(what=", ".join(dict.fromkeys(what.values())), about=meant, jobs=jobs), 110
  )
  picture = "![comparison](comparison.png)"
  whole.write(place / "comparison.md", f"# Methods side by side\n\n{shown}\n\n{text}\n\n{picture}\n")
  floors = {data: _floor(of[data], key) for data, key in keys.items()}
  _plot(tables, keys, what, floors, place)
  return shown


def _methods(place: epath.Path) -> list[str]:
  order = place / "order.txt"
  if order.exists():
    try:
      return bounded.content(order, 1 << 20).decode().split()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(str(order), f"unreadable: {error}", "the names of the methods, one a line") from error
  names = [path.name for path in place.iterdir()] if place.is_dir() else []
  return sorted(name for name in names if evaluated(place / name))


def _key(entries: Sequence[Mapping[str, Any]], metric: str | None) -> str | None:
  """Return the name of the value that methods are compared by; None where there is none of it."""
  measured = [name for one in metrics_of(entries).values() for name in one.records]
  if metric is None:
    return next(iter(measured), None)
  return metric if metric in measured else None


def _floor(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
  baseline = next(metric.baseline for metric in METRICS.values() if name in metric.records)
  key = f"{name}_{baseline}"
  return next((entry[key] for entry in entries if entry.get(key) is not None), None)


def summarize(
  entries: Sequence[Mapping[str, Any]], methods: Sequence[str], key: str = "fd"
) -> list[dict[str, Any]]:
  """Return one row a method of entries of one data set: what it is compared by, as mean and deviation over
  seeds.

  A row is {"method", "data", "seeds", "fd": {nfe: [mean, deviation]}, "seconds": [mean, deviation], "steps"}.

  >>> about = {"method": "cd", "data": "digits", "nfe": 1, "train_seconds": 5.0, "train_steps": 9}
  >>> summarize([{**about, "fd": fd, "seed": fd} for fd in (1.0, 3.0)], ["cd"])[0]["fd"]
  {1: [2.0, 1.4142135623730951]}
  """
  rows = []
  for method in methods:
    mine = [entry for entry in entries if entry["method"] == method]
    if not mine:
      continue
    levels = sorted({entry["nfe"] for entry in mine})
    seconds = {entry["seed"]: entry["train_seconds"] for entry in mine if entry["train_seconds"] is not None}
    rows.append(
      {
        "method": method,
        "data": mine[0]["data"],
        "seeds": len({entry["seed"] for entry in mine}),
        key: {nfe: _spread([entry.get(key) for entry in mine if entry["nfe"] == nfe]) for nfe in levels},
        "seconds": _spread(list(seconds.values())),
        "steps": mine[0]["train_steps"],
      }
    )
  return rows


def _spread(values: Sequence[float | None]) -> list[float | None]:
  known = [value for value in values if value is not None]
  if not known:
    return [None, None]
  return [statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None]


def _levels(rows: Sequence[Mapping[str, Any]], key: str) -> list[int]:
  return sorted({nfe for row in rows for nfe in row[key]})


def _table(rows: Sequence[Mapping[str, Any]], key: str) -> str:
  levels = _levels(rows, key)
  head = ["method", *(f"{nfe} NFE" for nfe in levels), "train s", "steps", "seeds"]
  body = []
  for row in rows:
    cells = [_shown(row[key].get(nfe), ".2f") for nfe in levels]
    cost = [_shown(row["seconds"][:1], ".0f"), str(row["steps"] or "-"), str(row["seeds"])]
    body.append([row["method"], *cells, *cost])
  return markdown_table([head, *body])


def _shown(pair: Sequence[float | None] | None, form: str) -> str:
  if not pair or pair[0] is None:
    return "-"
  spread = pair[1] if len(pair) > 1 else None
  return format(pair[0], form) + ("" if spread is None else f" ± {format(spread, form)}")


def _plot(
  tables: Mapping[str, Sequence[Mapping[str, Any]]],
  keys: Mapping[str, str],
  what: Mapping[str, str],
  floors: Mapping[str, float | None],
  place: epath.Path,
) -> None:
  """Draw what methods are compared by, a panel a data set; below it samples of the fewest and most steps."""
  methods: dict[str, Mapping[str, Any]] = {}
  for row in (row for rows in tables.values() for row in rows):
    methods.setdefault(row["method"], row)
  across = min(len(methods), ACROSS)
  lines = -(-len(methods) // across)  # of samples of the fewest evaluations, and as many of the most
  high = style.INCHES
  with pictures.figure(
    place / "comparison.png", SQUARE * across, high * len(tables) + 2 * lines * SQUARE
  ) as figure:
    heights = (*(high for _ in tables), *(SQUARE for _ in range(2 * lines)))
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
    for line, (data, rows) in enumerate(tables.items()):
      _bars(figure.add_subplot(grid[line, :]), rows, keys[data], floors[data], what[data])
    for number, (method, row) in enumerate(methods.items()):
      seed = evaluated(place / method)[0]
      levels = row[keys[row["data"]]]
      for below, nfe in enumerate(sorted({min(levels), max(levels)})):
        line, column = divmod(number, across)
        panel = figure.add_subplot(grid[len(tables) + below * lines + line, column])
        panel.axis("off")
        _samples(panel, RunFolder.at(place / method / seed).grid_of_nfe(nfe))
        panel.set_title(f"{method}, {nfe} NFE")


def _bars(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, floor: float | None, title: str) -> None:
  levels = _levels(rows, key)
  width = 0.8 / len(levels)
  own = [[nfe for nfe in levels if row[key].get(nfe, [None])[0] is not None] for row in rows]
  for nfe in levels:
    shown = [(at, rows[at][key][nfe]) for at, measured in enumerate(own) if nfe in measured]
    # over the row's name, however few it has
    places = [at + (own[at].index(nfe) - (len(own[at]) - 1) / 2) * width for at, _ in shown]
    spreads = [spread or 0 for _, (_, spread) in shown]
    panel.bar(places, [mean for _, (mean, _) in shown], width, yerr=spreads, label=f"{nfe} NFE")
  if floor is not None:
    panel.axhline(floor, color=style.INK, linestyle=":", label="real halves")
  means = [pair[0] for row in rows for pair in row[key].values()]
  pictures.log_axis(panel, "y", means)
  panel.set(ylabel=title, xticks=range(len(rows)), xticklabels=[row["method"] for row in rows])
  panel.legend(ncols=len(levels) + 1)


def _samples(panel: Any, picture: epath.Path) -> None:
  if picture.exists():
    panel.imshow(pictures.corner_of_grid(picture, SIDE))
