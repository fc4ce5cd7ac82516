"""Derive report.json, report.md and the loss curves from the runs in one folder, and print the table.

python -m cm_jax report --folder=runs/digits
"""

from absl import flags

from cm_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("folder", None, "Folder of run folders.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Write the report and print its table."""
  if not values.folder:
    raise UserError("--folder", "", "the folder that holds the runs")
  from cm_jax.evaluation.report import report

  print(report(values.folder))
