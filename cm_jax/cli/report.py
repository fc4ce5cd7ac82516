"""Derive report.json, report.md and the loss curves from the runs in one folder, and print the table.

  python -m cm_jax report --folder=runs/digits
  python -m cm_jax report --rows --out=configs/README.md

With --rows the column "ours" of the table of papers' rows is written from the records kept in --folder, by
default results/rows beside --out: there NAME.jsonl is the evaluations.jsonl of a run of configs/NAME.py, and
NAME.VARIANT.jsonl that of NAME.py:VARIANT. A column "device-hours" is written from plans.json there, which
launch/plans.py makes. All else in the file stays as it is.
"""

from absl import flags

from cm_jax.cli.flags import counted
from cm_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("folder", None, "Folder of run folders; with --rows of records.", flag_values=values)
  flags.DEFINE_bool("rows", False, "Write the table of papers' rows in --out.", flag_values=values)
  flags.DEFINE_string("out", None, "With --rows: the Markdown file.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Write the report and print its table."""
  if values.rows:
    if not values.out:
      raise UserError("--out", "", "the Markdown file whose table is written, such as configs/README.md")
    from cm_jax.evaluation.rows import write_rows

    found = write_rows(values.out, values.folder)
    print(
      f"{values.out}: {counted(len(found), 'config')} with records{': ' if found else ''}{', '.join(found)}"
    )
    return
  if values.out:
    raise UserError("--out", values.out, "--rows beside it: a report goes into its --folder")
  if not values.folder:
    raise UserError("--folder", "", "the folder that holds the runs")
  from cm_jax.evaluation.report import report

  print(report(values.folder))
