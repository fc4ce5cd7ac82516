"""Compare cm_jax with a folder of reference numbers, one case a subfolder, driven by each case's meta.json.

A group of cases is one module with `HANDLERS`; a handler says which cases are its own by what their meta.json
holds (peer, class), and yields what it computed. The runner compares with the stored outputs within
`meta.json["tol"]` and counts as failed every output that nobody computed and every option of meta.json that
nobody acts on, by name. A run that fails takes no other with it (`each`). To add a group: write its module
and put it into `GROUPS`.
"""

import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = (
  "a_edm",
  "b_edm2",
  "c_openai",
  "d_editing",
  "d_openai",
  "d_samplers",
  "e_losses",
  "f_inception",
  "f_metrics",
  "g_jcm",
  "g_jcm_losses",
  "h_files",
)
# keys of meta.json that describe and choose nothing
ABOUT = (
  *("case", "split", "peer", "commit", "commits", "file", "cls", "call", "layout", "note", "env", "seed"),
  *("arrays", "tol", "tolerance", "f64", "f32_vs_f64", "verified_reload_recompute_max_abs_diff", "weights"),
  *("attention", "inpainting_mask", "superres", "Q", "weights_prefixes", "config_file", "overrides"),
  *("container", "top_level_keys", "opt_state_tree", "bytes", "pickle_protocol", "pickle_globals_needed"),
)
STORED = 1.2e-7  # what a float64 reference loses where it is stored as float32
SUFFIXES = ("_f64", "_f64as32", "_f32")


@dataclasses.dataclass(frozen=True)
class Case:
  """A folder of fixtures."""

  path: Path

  @property
  def name(self) -> str:
    return self.path.name

  @functools.cached_property
  def meta(self) -> dict[str, Any]:
    file = self.path / "meta.json"
    return json.loads(file.read_text()) if file.is_file() else {}

  @functools.cached_property
  def arrays(self) -> dict[str, np.ndarray]:
    with np.load(self.path / "io.npz", allow_pickle=False) as stored:
      return {key: stored[key] for key in stored.files}

  @functools.cached_property
  def weights(self) -> dict[str, np.ndarray]:
    with np.load(self.path / "weights.npz", allow_pickle=False) as stored:
      return {key: stored[key] for key in stored.files}

  @property
  def kwargs(self) -> dict[str, Any]:
    return self.meta.get("kwargs", {})

  def input(self, name: str) -> np.ndarray | None:
    """Return an input, or None where the case has none."""
    return self.arrays.get(f"in_{name}")

  def outputs(self) -> dict[str, str]:
    """Return {name: key of its reference}: the float64 numbers where there are some."""
    keys = [key for key in self.arrays if key.startswith("out_")]
    named = {
      key: next((key.removesuffix(suffix) for suffix in SUFFIXES if key.endswith(suffix)), key)
      for key in keys
    }
    rank = lambda key: next((i for i, suffix in enumerate(SUFFIXES) if key.endswith(suffix)), len(SUFFIXES))
    return {
      name.removeprefix("out_"): key for key, name in sorted(named.items(), key=lambda item: -rank(item[0]))
    }

  def tolerance(self, key: str, dtype: str = "float32") -> float:
    """Return the tolerance of an output, relative to its largest value: of the last matching pattern."""
    tol = self.meta["tol"][dtype]
    matching = [value for pattern, value in tol["by_key"] if re.search(pattern, key.removeprefix("out_"))]
    return matching[-1] if matching else tol["default"]


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison; `passed=None` only reports."""

  case: str
  what: str
  error: float
  tolerance: float
  passed: bool | None
  note: str = ""

  def __str__(self) -> str:
    verdict = {True: "pass", False: "FAIL", None: "report"}[self.passed]
    note = f"  {self.note}" if self.note else ""
    return f"{self.case:36} {self.what[:44]:44} {self.error:10.2e} {self.tolerance:10.2e}  {verdict}{note}"


@dataclasses.dataclass(frozen=True)
class Result:
  """What a handler computed: an output by name, or the verdict on something that has no stored output.

  A callable `value` is called. `exact` compares without a tolerance; `report` shows the error and decides
  nothing; `is_input` says that what the case stores as an output is what it fed in; `dtype` chooses among the
  case's tolerances; `parts` are many small outputs shown as one row, the worst; `least` is the smallest scale
  an error is relative to, for what is 0 but for rounding.
  """

  name: str
  value: Any = None
  passed: bool | None = None
  note: str = ""
  exact: bool = False
  report: bool = False
  is_input: bool = False
  parts: Mapping[str, Any] | None = None
  dtype: str = "float32"
  least: float = 0.0


@dataclasses.dataclass(frozen=True)
class Handler:
  """Computes the cases that it accepts.

  `section` is the part after the dot in --only=G.networks; `reads` are the keys of meta.json that it acts on.
  """

  accepts: Callable[[Case], bool]
  run: Callable[[Case], Iterable[Result]]
  section: str
  reads: tuple[str, ...] = ()


def each(runs: Mapping[str, Any], compute: Callable[[str, Any], Iterable[Result]]) -> Iterator[Result]:
  """Yield what `compute(run, options)` yields for every run; one that raises fails alone, with its reason."""
  for run, options in runs.items():
    try:
      yield from compute(run, options)
    except Exception as error:  # whatever keeps a run from being computed is a failure of that run
      yield Result(run, passed=False, note=reason(error))


def reason(error: Exception) -> str:
  """Return an error as one line."""
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def handlers() -> list[Handler]:
  """Return the handlers of every group."""
  package = __package__ or "tests.golden"
  return [handler for group in GROUPS for handler in importlib.import_module(f"{package}.{group}").HANDLERS]


def cases(folder: Path, only: Sequence[str]) -> list[Case]:
  """Return the cases chosen by letters ("A") and sections ("G.networks"); everything for an empty choice.

  A case that no handler accepts belongs to every section of its letter, so that nothing drops out unseen.
  """
  found = [Case(path) for path in sorted(folder.iterdir()) if path.is_dir()]
  chosen = [choice.partition(".") for choice in only]
  return [
    case for case in found if not only or any(_chosen(case, letter, section) for letter, _, section in chosen)
  ]


def _chosen(case: Case, letter: str, section: str) -> bool:
  if case.name.split("_")[0] != letter:
    return False
  return not section or section_of(case) in ("", section)


def section_of(case: Case) -> str:
  """Return the section of a case: its handler's, else a guess from its meta.json; "" if unknown."""
  for handler in handlers():
    if handler.accepts(case):
      return handler.section
  words = case.meta.get("cls", "").lower()
  return next(
    (section for word, section in (("loss", "losses"), ("sampler", "samplers")) if word in words), ""
  )


def run_case(case: Case, reports: bool = True) -> Iterator[Row]:
  """Yield the comparisons of a case; without `reports` only those that decide."""
  handler = next((handler for handler in handlers() if handler.accepts(case)), None)
  if handler is None:
    yield Row(
      case.name, case.meta.get("cls", "no meta.json"), np.nan, np.nan, False, "nothing here handles this case"
    )
    return
  left = case.outputs() if (case.path / "io.npz").is_file() else {}
  for key in sorted(set(case.meta) - {*ABOUT, *handler.reads}):
    yield Row(case.name, key, np.nan, np.nan, False, f"option {key} of meta.json is not known here")
  try:
    for result in handler.run(case):
      if result.report and not reports:
        continue
      if result.is_input:
        left.pop(result.name, None)
      elif result.parts:
        rows = [
          compare(case, left, dataclasses.replace(result, name=name, value=value, parts=None))
          for name, value in result.parts.items()
        ]
        worst = max(rows, key=lambda row: (row.passed is False, row.error / max(row.tolerance, 1e-300)))
        yield dataclasses.replace(worst, what=f"{result.name} ({len(rows)})", note=result.note)
      else:
        yield compare(case, left, result)
  except Exception as error:  # a case that cannot be computed is a failure of that case, with its reason
    yield Row(case.name, "", np.nan, np.nan, False, reason(error))
  for name in left:
    yield Row(case.name, name, np.nan, np.nan, False, "not computed")


def compare(case: Case, left: dict[str, str], result: Result) -> Row:
  """Return the row of a result; an output that decides is struck off `left`."""
  if result.passed is not None:
    return Row(case.name, result.name, 0.0 if result.passed else np.inf, 0.0, result.passed, result.note)
  known = case.outputs()
  if result.name not in known:
    # No fault of ours: what the case does have and nobody computes fails by its name.
    return Row(case.name, result.name, np.nan, np.nan, None, "the case has no such output")
  key = known[result.name]
  if not result.report:
    left.pop(result.name, None)
  try:
    value = np.asarray(result.value() if callable(result.value) else result.value)
  except Exception as error:  # a value that is computed late, likewise
    return Row(case.name, result.name, np.nan, np.nan, False, reason(error))
  reference = case.arrays[key]
  tolerance = 0.0 if result.exact else case.tolerance(key, result.dtype)
  if not result.exact and reference.dtype == np.float32:
    tolerance = max(tolerance, STORED)
  if reference.shape != value.shape:
    return Row(
      case.name, result.name, np.nan, tolerance, False, f"shape {value.shape}, not {reference.shape}"
    )
  if reference.dtype.kind in "US":
    same = bool((reference == value).all())
    return Row(case.name, result.name, 0.0 if same else np.inf, 0.0, same, result.note)
  error = relative_error(value.astype(np.float64), reference.astype(np.float64), result.least)
  return Row(
    case.name, result.name, error, tolerance, None if result.report else bool(error <= tolerance), result.note
  )


def relative_error(value: np.ndarray, reference: np.ndarray, least: float = 0.0) -> float:
  """Return max|value - reference| / max(max|reference|, least); what is infinite or NaN must be so in both.

  >>> relative_error(np.array([1.0, np.inf]), np.array([2.0, np.inf]))
  0.5
  """
  finite = np.isfinite(reference)
  if not np.array_equal(value[~finite], reference[~finite], equal_nan=True):
    return np.inf
  value, reference = value[finite], reference[finite]
  scale = max(np.abs(reference).max(initial=0.0), least, np.finfo(np.float64).tiny)
  return float(np.abs(value - reference).max(initial=0.0) / scale)


def report(rows: Iterable[Row], show: Callable[[str], None] = print) -> int:
  """Print the table and the last line; return the exit status."""
  show(f"{'case':36} {'compared':44} {'max error':>10} {'tolerance':>10}")
  passed = failed = 0
  for row in rows:
    show(str(row))
    passed += row.passed is True
    failed += row.passed is False
  show(f"{passed} passed, {failed} failed")
  return 1 if failed else 0
