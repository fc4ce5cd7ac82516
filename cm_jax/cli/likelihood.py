"""Bits per dimension of a diffusion model on real images, by its probability-flow ODE.

  python -m cm_jax likelihood --workdir=runs/edm --source=digits:test --num=256
  python -m cm_jax likelihood --model=weights/edm --source=folder:/data/test --trace=exact --samples=8

--samples dequantisations of each image give the importance-weighted bound, tighter than the plain uniform one
(--samples=1). Appends a record to evaluations.jsonl of the run. A consistency model has no likelihood of this
kind: its f is not a denoiser.
"""

import math

from absl import flags

from cm_jax.cli.flags import define_weights, is_main, load, start


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  define_weights(values)
  flags.DEFINE_string(
    "source",
    None,
    "Real images; by default those held out of the run's data, if known, else its data.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num", None, "The first so many images; all by default.", lower_bound=1, flag_values=values
  )
  flags.DEFINE_string("trace", "hutchinson", "hutchinson or exact.", flag_values=values)
  flags.DEFINE_integer("probes", 1, "Of Hutchinson's estimate.", flag_values=values)
  flags.DEFINE_integer("samples", 1, "Dequantisations per image.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("rtol", 1e-4, "Of the ODE solver.", flag_values=values)
  flags.DEFINE_float("atol", 1e-4, "Of the ODE solver.", flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of the dequantisation and the probes.", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, integrate, record."""
  start()
  from cm_jax.evaluation.bits import bits
  from cm_jax.storage.run import RunFolder

  model = load(values)
  path = values.workdir or values.model
  record, found = bits(
    model,
    values.source,
    values.num,
    values.trace,
    values.probes,
    values.samples,
    values.rtol,
    values.atol,
    values.seed,
    values.batch_size,
    out=path if values.workdir or RunFolder.at(path).config.exists() else None,
  )
  if is_main():
    shown = f"{found.mean():.4f} ± {found.std() / math.sqrt(len(found)):.4f} bits/dim"
    print(f"{shown} over {record.n} images of {record.reference}, at most {record.nfe} evaluations")
