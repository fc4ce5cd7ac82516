"""Measure a model's samples and append one record per measurement to evaluations.jsonl in its run.

  python -m cm_jax train-features --source=digits --out=runs/features
  python -m cm_jax evaluate --workdir=runs/cd --features=runs/features --sigmas=80 --sigmas=80,0.8
  python -m cm_jax evaluate --workdir=runs/edm --features=runs/features --num_steps=18

What was measured before, of the same checkpoint in the same way, is not measured again (--again does).
"""

from absl import flags

from cm_jax.cli.flags import counted, define_features, define_model, is_main, load, read_samplers, start
from cm_jax.errors import UserError
from cm_jax.notices import notice
from cm_jax.storage.run import RunFolder
from cm_jax.storage.whole import check_writable


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  define_model(values)
  define_features(values)
  flags.DEFINE_multi_string(
    "sigmas", None, "Noise levels of multistep sampling; may be given several times.", flag_values=values
  )
  flags.DEFINE_string(
    "train_source", None, "Source the model was trained on; by default that of the run.", flag_values=values
  )
  flags.DEFINE_string(
    "test_source",
    None,
    "Real images the model has not seen; by default what is known to be held out of the run's data.",
    flag_values=values,
  )
  flags.DEFINE_integer("num", 5000, "Number of samples.", lower_bound=2, flag_values=values)
  flags.DEFINE_string(
    "out", None, "Folder of evaluations.jsonl and the grids; by default the run.", flag_values=values
  )
  flags.DEFINE_bool("again", False, "Measure also what was measured before.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, measure, record."""
  out = values.out or values.workdir
  if not out:
    raise UserError("--out", "", "where the records go, when --workdir is not given")
  if not values.features:
    raise UserError("--features", "", "a folder that train-features wrote")
  check_writable("--out", RunFolder.at(out).evaluations)
  start()
  from cm_jax.evaluation.evaluate import evaluate
  from cm_jax.evaluation.report import rows_of
  from cm_jax.sampling.doubts import doubts

  model = load(values)
  samplers = read_samplers(values, model, values.sigmas or ())
  notice(*doubts(model, samplers, values.guidance))
  measured = evaluate(
    model,
    samplers,
    values.features,
    values.reference,
    values.train_source,
    values.test_source,
    values.num,
    values.seed,
    values.guidance,
    values.batch_size,
    out=out,
    again=values.again,
  )
  if is_main():
    print(rows_of([*measured.made, *measured.found], out))
    counts = [len({(r.nfe, r.sigmas) for r in part if r.nfe is not None}) for part in measured]
    earlier = f", {counts[1]} as before (--again measures anew)" if counts[1] else ""
    print(f"{RunFolder.at(out).evaluations}: {counted(counts[0], 'sampler')} measured{earlier}")
