"""What a measurement is printed and kept as: a table, and a JSON file that says where and how it was made."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cm_jax.errors import UserError
from cm_jax.storage import bucket, whole
from cm_jax.storage.tables import markdown_table

Column = Callable[[dict[str, Any]], str]


def table(rows: Sequence[dict[str, Any]], columns: Mapping[str, Column]) -> str:
  """Return rows as a Markdown table: the first column to the left, the others to the right.

  >>> print(table([{"n": 1}, {"n": 20}], {"name": lambda row: "x", "n": lambda row: str(row["n"])}))
  | name |  n |
  |------|---:|
  | x    |  1 |
  | x    | 20 |
  """
  cells = [list(columns), *([column(row) for column in columns.values()] for row in rows)]
  return markdown_table(cells, right=range(1, len(columns)))


def text(value: float | None, form: str) -> str:
  """Return a number as text, nothing for None."""
  return "" if value is None else format(value, form)


def check_out(out: str | None, field: str = "out") -> None:
  """Check that a record can be written there; None is nowhere.

  Raises:
    UserError: Its folder is missing or read-only, or it is a folder itself.
  """
  if out is None:
    return
  if bucket.is_bucket(out):  # which has no folders
    whole.check_writable(field, out)
    return
  folder = Path(out).absolute().parent
  if Path(out).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
    raise UserError(field, out, "a file in a folder that exists and can be written")


def circumstances() -> dict[str, Any]:
  """Return where and by what a measurement was made: command, machine, device, versions, commit."""
  from cm_jax.evaluation.records import provenance

  command = shlex.join(["python", "-m", "cm_jax", *sys.argv[1:]])
  return {"command": command, "machine": machine(), **provenance()}


def machine() -> dict[str, Any]:
  """Return the processor's name, how many cores this process may use, and the operating system."""
  import platform

  from cm_jax.data.sources.threads import cores

  cpuinfo = Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  processor = names[0] if names else platform.processor()
  return {"processor": processor, "cores": cores(), "system": platform.platform()}


def write(record: dict[str, Any], out: str) -> None:
  """Write the record, all of it or nothing: to a .jsonl a line for every row, with all else in each."""
  if not out.endswith(".jsonl"):
    whole.write(out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return
  about = {key: value for key, value in record.items() if key != "rows"}
  whole.write(out, "".join(json.dumps({**about, **row}, allow_nan=False) + "\n" for row in record["rows"]))
