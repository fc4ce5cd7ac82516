"""The columns "ours" and "device-hours" of a table of papers' rows, written from the records and the plans
that were kept of each config."""

import re
from collections.abc import Mapping, Sequence

from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation.entries import named
from cm_jax.evaluation.metrics import METRICS
from cm_jax.evaluation.plans import hours, read_plans, title
from cm_jax.evaluation.records import Record, read
from cm_jax.evaluation.tables import title_of
from cm_jax.storage import bounded, whole

NOT_YET = "not yet run"
PLANS = "plans.json"
_HOURS = "device-hours"  # how the name of that column begins
_CELLS = re.compile(r"(?<!\\)\|")
_CONFIG = re.compile(r"(\w+)\.py(?::([\w.-]+))?")
_WRITTEN = re.compile(r"\(.*\d NFE.*\)")  # what a cell that was written from records looks like


def write_rows(table: epath.PathLike, folder: epath.PathLike | None = None) -> list[str]:
  """Write cells of a Markdown file's tables that have columns "config" and "ours"; the rest stays.

  A config NAME.py has its records in NAME.jsonl, NAME.py:VARIANT in NAME.VARIANT.jsonl: the evaluations.jsonl
  of its run. Where none are kept a cell "ours" keeps its words, or loses its numbers. A column whose name
  begins with "device-hours" is written from plans.json, its name too: see `launch/plans.py`.

  Args:
    table: The file.
    folder: Of the records and plans; by default results/rows beside the file.

  Returns:
    Names of the configs that have records, sorted.

  Raises:
    UserError: No such file, no such table, a record or plan that is none, or of a config that no row names.
  """
  place = whole.place(table)
  expected = "a Markdown file with a table of rows that is there"
  try:
    text = bounded.content(place, bounded.SMALL).decode()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError("out", str(table), f"{expected} ({error})") from error
  folder = whole.place(folder) if folder is not None else place.parent / "results" / "rows"
  kept, plans = _kept(folder), {_configs(plan.config)[0]: plan for plan in read_plans(folder / PLANS)}
  lines, used, found = [], set[str](), False
  columns: dict[str, int] | None = None
  for line in text.split("\n"):
    cells = _CELLS.split(line)
    if not line.startswith("|"):
      columns = None
    elif columns is None:
      columns = _columns([cell.strip() for cell in cells])
      found = found or bool(columns)
      if _HOURS in columns and plans:
        cells[columns[_HOURS]] = f" {title(next(iter(plans.values())))} "
        line = "|".join(cells)
    elif columns and not set(line) <= set("|-: "):
      configs = _configs(cells[columns["config"]])
      used |= set(configs)
      cells[columns["ours"]] = _cell(cells[columns["ours"]], [kept.get(config, []) for config in configs])
      if _HOURS in columns:
        cells[columns[_HOURS]] = f" {hours(map(plans.get, configs))} "
      line = "|".join(cells)
    lines.append(line)
  if not found:
    raise UserError("out", str(table), 'a file with a table whose columns "config" and "ours" are filled in')
  if lost := sorted(kept.keys() - used):
    raise UserError("folder", f"{lost[0]}.jsonl", f"records of configs that a row of {table} names")
  if lost := sorted(plans.keys() - used):
    raise UserError(PLANS, plans[lost[0]].config, f"plans of configs that a row of {table} names")
  written = "\n".join(lines)
  if written != text:
    whole.write(table, written)
  return sorted(kept)


def _columns(names: Sequence[str]) -> dict[str, int]:
  """Return where a table's columns are that matter here; nothing of a table without them."""
  if not {"config", "ours"} <= set(names):
    return {}
  planned = [index for index, name in enumerate(names) if name.startswith(_HOURS)]
  return {
    "config": names.index("config"),
    "ours": names.index("ours"),
    **({_HOURS: planned[0]} if planned else {}),
  }


def _configs(cell: str) -> list[str]:
  """Return the configs that a cell names.

  >>> _configs(" `imagenet64_ct.py`, `imagenet64_ect.py:xl-1024` ")
  ['imagenet64_ct', 'imagenet64_ect.xl-1024']
  """
  return [name if not variant else f"{name}.{variant}" for name, variant in _CONFIG.findall(cell)]


def _kept(folder: epath.Path) -> dict[str, list[Record]]:
  if not folder.is_dir():
    return {}
  files = sorted(path for path in folder.iterdir() if path.suffix == ".jsonl")
  return {path.name.removesuffix(".jsonl"): read(path) for path in files}


def _cell(before: str, kept: Sequence[Sequence[Record]]) -> str:
  """Return a cell with what records say, one text a config; as wide as it was, if that is enough."""
  texts = [ours(records) for records in kept]
  if any(texts):
    said = ", ".join(text or NOT_YET for text in texts)
  else:
    said = NOT_YET if _WRITTEN.search(before) else before.strip()
  return f" {said} ".ljust(len(before) if before.endswith("  ") else 0)


def ours(records: Sequence[Record]) -> str:
  """Return what records of a run come to: the newest of each number of network evaluations, means over seeds.

  >>> one = {"metric": "fd_digits", "n": 5000, "step": 9}
  >>> ours([Record(value=2.5, nfe=1, **one), Record(value=1.25, nfe=2, **one)])
  'FD-digits 2.50 / 1.25 (1 / 2 NFE)'
  >>> ours([])
  ''
  """
  by_metric: dict[tuple[str, str], list[Record]] = {}
  for record in records:
    about = named(record.metric)
    first = about is not None and next(iter(METRICS[about.metric].records)) == about.value
    if about is not None and first and not about.is_real and record.nfe and record.value is not None:
      by_metric.setdefault((about.metric, record.metric), []).append(record)
  if not by_metric:
    return ""
  order = ["fid", *METRICS]
  key = min(by_metric, key=lambda pair: order.index(pair[0]))
  found = by_metric[key]
  newest = max(record.step or 0 for record in found)
  values: dict[int, dict[int | None, Record]] = {}
  for record in found:
    if (record.step or 0) == newest and record.nfe is not None:
      values.setdefault(record.nfe, {})[record.seed] = record
  return _shown(key[1], dict(sorted(values.items())))


def _shown(name: str, values: Mapping[int, Mapping[int | None, Record]]) -> str:
  means = [sum(r.value or 0.0 for r in found.values()) / len(found) for found in values.values()]
  seeds = max(len(found) for found in values.values())
  counts = [record.n for found in values.values() for record in found.values() if record.n is not None]
  shown = f"{' / '.join(f'{mean:.2f}' for mean in means)} ({' / '.join(map(str, values))} NFE"
  return f"{title_of(name, counts)} {shown}{f', mean of {seeds} seeds' if seeds > 1 else ''})"
