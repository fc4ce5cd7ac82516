"""Find the noise levels of few steps that make the Frechet distance smallest, and store them with the model.

  python -m cm_jax search-steps --workdir=runs/cd --nfe=2,4 --features=runs/features
  python -m cm_jax sample --workdir=runs/cd --nfe=2 --out=x.png

Writes RUN/sigmas.json (for a weights folder: its model.json) and RUN/search_nfe_002.png, the curve. Every
candidate has the same noise, and is clipped and noised again as the model itself says (or --clip, --renoise).
--method=ternary is the paper's search; golden scans first, with fewer samples, and then narrows down.
"""

from absl import flags

from cm_jax.cli.flags import (
  define_features,
  define_protocol,
  define_seed,
  define_weights,
  is_main,
  load,
  start,
)
from cm_jax.errors import UserError
from cm_jax.storage.published import is_own
from cm_jax.storage.run import RunFolder
from cm_jax.storage.whole import check_writable


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  define_weights(values)
  define_features(values)
  define_protocol(values)
  flags.DEFINE_list("nfe", ["2"], "Numbers of network evaluations, 2 to 8.", flag_values=values)
  flags.DEFINE_string("method", "golden", "golden or ternary.", flag_values=values)
  flags.DEFINE_integer("num", 5000, "Samples per candidate.", lower_bound=2, flag_values=values)
  flags.DEFINE_integer("rounds", 1, "How often each level is optimised.", lower_bound=1, flag_values=values)
  define_seed(values, "Of the samples.")
  flags.DEFINE_integer("batch_size", 250, "Images at a time.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Search for every number of evaluations, store what is found."""
  from cm_jax.sampling.step_search import StepSearch
  from cm_jax.types import NoiseRange

  path = values.model or values.workdir
  if not path:
    raise UserError("--model", "", "a run or weights folder (or --workdir)")
  if not is_own(path):
    raise UserError("--model", path, "a folder of your own: what is found is written into it")
  try:
    counts = [int(text) for text in values.nfe]
  except ValueError:
    raise UserError("--nfe", ",".join(values.nfe), "numbers from 2 to 8 such as 2,4") from None
  for count in counts:
    StepSearch(NoiseRange(), count, values.method)
  if not values.features:
    raise UserError("--features", "", "a folder that train-features wrote")
  check_writable("--model", RunFolder.at(path).sigmas)
  start()
  from cm_jax.evaluation.search import search
  from cm_jax.sampling.choose import listed

  model = load(values)
  for count in counts:
    best, history = search(
      model,
      count,
      values.features,
      values.reference,
      values.method,
      values.num,
      values.rounds,
      values.seed,
      values.batch_size,
      out=path,
      clip=values.clip,
      renoise=values.renoise,
    )
    if is_main():
      found = f"--sigmas={listed(best.sigmas)}  FD {best.value:.4f}"
      print(f"{count} NFE: {found} over {best.n} samples, {len(history)} evaluations")
