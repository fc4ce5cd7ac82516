"""The columns of the papers' rows say what the kept records and plans say, and nothing else changes."""

import json
from pathlib import Path

import pytest

from cm_jax import cli
from cm_jax.errors import UserError
from cm_jax.evaluation.records import Record, append
from cm_jax.evaluation.rows import write_rows

REPO = Path(__file__).parents[2]
TEXT = """# Rows

| a | config |
|---|---|
| one | `x.py` |

Prose with | a bar | in it.

| row | config | paper | ours | command |
|---|---|:-:|---|---|
| First, a \\| b | `x.py` | 2.0 | not yet run | `train` |
| Two | `y.py`, `y.py:code` | 3 / 2 | FD-digits 9.00 (1 NFE) | |
| Three | `z.py` | 1 | not here: no data | |
| Four | `w.py` | 1 | FID@500 3.00 (1 NFE)    | |

The end
"""


@pytest.fixture
def table(tmp_path):
  (tmp_path / "README.md").write_text(TEXT)
  return tmp_path / "README.md"


def keep(table, name, *records):
  (table.parent / "results" / "rows").mkdir(parents=True, exist_ok=True)
  append(table.parent / "results" / "rows" / f"{name}.jsonl", records)


def fd(value, nfe=1, **fields):
  return Record(**{"metric": "fd_cifar", "value": value, "nfe": nfe, "n": 5000, "step": 10, **fields})


def test_cells_are_those_of_the_newest_records(table, capsys):
  keep(table, "x", fd(5.0, step=5), fd(3.0), fd(2.517, nfe=2), fd(2.4, nfe=2, seed=0), fd(2.6, nfe=2, seed=1))
  keep(
    table, "x", Record(metric="fd_cifar_floor", value=0.1), Record(metric="class_entropy", value=1.0, nfe=1)
  )
  keep(table, "y.code", fd(7.25))
  assert cli.run(["report", "--rows", f"--out={table}"]) == 0
  assert capsys.readouterr().out == f"{table}: 2 configs with records: x, y.code\n"
  written = table.read_text()
  expected = TEXT.replace("2.0 | not yet run", "2.0 | FD-cifar 3.00 / 2.51 (1 / 2 NFE, mean of 3 seeds)")
  expected = expected.replace("FD-digits 9.00 (1 NFE)", "not yet run, FD-cifar 7.25 (1 NFE)")
  expected = expected.replace("FID@500 3.00 (1 NFE)    |", "not yet run             |")
  assert written == expected
  write_rows(table)
  assert table.read_text() == written


def test_a_variant_is_all_that_stands_behind_the_colon(table):
  names = ("x.py:xl", "x.py:xl-1024", "y.py:cond-vp")
  table.write_text("| config | ours |\n|---|---|\n" + "".join(f"| `{name}` | none |\n" for name in names))
  keep(table, "x.xl", fd(4.5))
  keep(table, "y.cond-vp", fd(1.75))
  assert write_rows(table) == ["x.xl", "y.cond-vp"]
  lines = [line.split("|")[2].strip() for line in table.read_text().splitlines()[2:]]
  assert lines == ["FD-cifar 4.50 (1 NFE)", "none", "FD-cifar 1.75 (1 NFE)"]


PLAN = {
  "config": "x.py", "command": "plan", "device": "v9", "count": 2, "mfu": 0.25, "batch_size": 24,
  "accumulation": 3, "device_hours": 7654.3, "memory_gb": 5.5, "usable_gb": 6.0, "fits": True,
}  # fmt: skip


def plan(table, *entries):
  path = table.parent / "results" / "rows" / "plans.json"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(entries))


def test_device_hours_are_those_of_the_plans(table):
  rows = ("config | ours | device-hours", "---|---|---", "`x.py` | a | b", "`x.py:p-2`, `y.py` | c | d")
  text = "".join(f"| {row} |\n" for row in rows)
  table.write_text(text)
  plan(table, PLAN, {**PLAN, "config": "x.py:p-2", "device_hours": 4})
  assert write_rows(table) == []
  expected = text.replace("| device-hours |", "| device-hours (2 v9, planned at MFU 0.25) |")
  assert table.read_text() == expected.replace("| b |", "| 7,650 |").replace("| d |", "| 4, not planned |")
  plan(table, PLAN)  # the column is known again by how its name begins
  write_rows(table)
  assert "| c | not planned, not planned |" in table.read_text()


@pytest.mark.parametrize(
  ("entries", "said"),
  [
    ([{**PLAN, "config": "nobody.py"}], "plans.json = nobody.py: expected plans of configs that a row"),
    ([PLAN, PLAN], "one plan a config"),
    ([PLAN, {**PLAN, "config": "y.py", "mfu": 0.5}], "at the same mfu"),
    ([{**PLAN, "device_hours": "7"}], "0: device_hours"),
    ([{**PLAN, "count": True}], "0: count"),
    ([{**PLAN, "more": 1}], "a list of plans as launch/plans.py writes it"),
    ([3], "a list of plans as launch/plans.py writes it"),
  ],
)
def test_bad_plans_are_one_line(table, entries, said):
  plan(table, *entries)
  with pytest.raises(UserError) as raised:
    write_rows(table)
  assert said in str(raised.value) and "\n" not in str(raised.value)
  assert table.read_text() == TEXT


def test_bad_input_is_one_line(table, tmp_path, capsys):
  keep(table, "unknown", fd(1.0))
  with pytest.raises(UserError, match=r"^folder = unknown\.jsonl: expected records of configs that a row"):
    write_rows(table)
  assert table.read_text() == TEXT
  (tmp_path / "other.md").write_text("| a |\n|---|\n")
  for arguments, said in (
    (["--rows"], "--out = : expected the Markdown file"),
    (["--rows", "--out=nowhere.md"], "--out = nowhere.md: expected a Markdown file"),
    (["--rows", f"--out={tmp_path / 'other.md'}"], 'a table whose columns "config" and "ours"'),
    (["--out=x.md", "--folder=y"], "--out = x.md: expected --rows beside it"),
  ):
    assert cli.run(["report", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_committed_table_is_what_the_command_writes(tmp_path):
  committed = REPO / "configs" / "README.md"
  (tmp_path / "README.md").write_bytes(committed.read_bytes())
  write_rows(tmp_path / "README.md", REPO / "configs" / "results" / "rows")
  assert (tmp_path / "README.md").read_bytes() == committed.read_bytes()
