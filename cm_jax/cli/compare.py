"""Put methods side by side: mean and spread over seeds by number of network evaluations, a table, a picture.

python -m cm_jax compare --folder=runs/compare    # METHOD/SEED/ run folders, as launch/compare.sh makes
python -m cm_jax compare noise --teacher=runs/edm --model=runs/cd --out=x.png   # the same noise through both
"""

from absl import flags

from cm_jax.errors import UserError


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("folder", None, "Folder of METHOD/SEED/ run folders.", flag_values=values)
  about = "What they are compared by: fd, fid, recall, ...; by default the first that was measured."
  flags.DEFINE_string("metric", None, about, flag_values=values)
  flags.DEFINE_integer(
    "jobs", 1, "How many trainings ran at a time, for the text.", lower_bound=1, flag_values=values
  )


def main(values: flags.FlagValues) -> None:
  """Write the comparison and print its table."""
  from cm_jax.storage import whole

  if not values.folder or not whole.place(values.folder).is_dir():
    raise UserError("--folder", values.folder or "", "the folder that holds the runs")
  from cm_jax.evaluation.comparison import compare

  print(compare(values.folder, values.jobs, values.metric))
