"""Measure samples of a model, or images that are there: records in evaluations.jsonl, and a table.

  python -m cm_jax evaluate --workdir=runs/cd --features=inception --reference=cifar10-32x32.npz --metrics=fid
  python -m cm_jax evaluate --images=samples.npz --features=inception --reference=cifar10-32x32.npz
  python -m cm_jax evaluate --workdir=runs/cd --features=runs/features --sigmas=80 --sigmas=80,0.8
  python -m cm_jax evaluate --workdir=runs/cd --features=digits --all-checkpoints --average=ema,params
  python -m cm_jax evaluate reference --source=digits --features=digits --out=digits.npz

--reference is a file of statistics (.npz of EDM, ADM or ours, .pkl of EDM2), a folder, .zip or .npz of
images, or a source. --convention=edm|adm|torch-fidelity|clean-fid-legacy is whose way of measuring it is:
quantiser, resize, counts, splits; each has a flag of its own. An interrupted evaluation goes on when it is
started again. What was measured before, of the same checkpoint in the same way, is not measured again
(--again does).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cm_jax.cli.flags import (
  counted,
  define_features,
  define_framing,
  define_model,
  is_main,
  load,
  read_samplers,
  start,
)
from cm_jax.errors import UserError
from cm_jax.notices import notice
from cm_jax.storage.run import RunFolder
from cm_jax.storage.whole import check_writable

if TYPE_CHECKING:
  from cm_jax.evaluation.evaluate import Measured
  from cm_jax.models import Model

# Fields of a convention that have a flag of their own.
CHOICES = (
  *("quantiser", "resize", "splits", "shuffle", "subsets", "subset_size", "kernel", "kernel_width"),
  *("neighbours", "metric_seed"),
)


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  define_model(values)
  define_features(values)
  define_convention(values)
  text = lambda name, about: flags.DEFINE_string(name, None, about, flag_values=values)
  flags.DEFINE_multi_string(
    "sigmas", None, "Noise levels of multistep sampling; may be given several times.", flag_values=values
  )
  text("images", "Instead of a model: a folder, .zip, .npz or .npy of images, or a source.")
  define_framing(values)
  text("metrics", "fid,sfid,is,kid,prdc,fd, ...: names of metrics; by default those usual in the features.")
  text("train_source", "Source the model was trained on; by default that of the run.")
  about = "Real images the model has not seen; by default what is known to be held out of the run's data."
  text("test_source", about)
  text("seeds", "Several seeds, such as 0,1,2: all values, their mean and the least are printed.")
  text("nearest", "Draw samples beside the training images nearest to them, by pixels or by features.")
  about = "Every checkpoint of the run, but for what is recorded."
  flags.DEFINE_bool("all_checkpoints", False, about, flag_values=values)
  text("out", "Folder of evaluations.jsonl and the grids; by default the run.")
  flags.DEFINE_bool("again", False, "Measure also what was measured before.", flag_values=values)
  about = "Measure although there are no more samples than features: their covariance is singular."
  flags.DEFINE_bool("few", False, about, flag_values=values)
  flags.DEFINE_bool("progress", True, "Show how far it is.", flag_values=values)


def define_convention(values: flags.FlagValues) -> None:
  """Declare the flags that say in whose way is measured."""
  number = lambda name, about: flags.DEFINE_integer(name, None, about, lower_bound=1, flag_values=values)
  about = "edm, adm, torch-fidelity, clean-fid-legacy or own; by default edm, in features of one's own own."
  flags.DEFINE_string("convention", None, about, flag_values=values)
  about = "Number of samples; by default the convention's: 50,000, own 5,000; of --images all."
  flags.DEFINE_integer("num", None, about, lower_bound=2, flag_values=values)
  flags.DEFINE_string("quantiser", None, "How samples become uint8: edm or adm.", flag_values=values)
  about = "How images come to the network's size: tf1-bilinear (Inception's own), pil-bicubic (DINOv2's)"
  about += ", torch-bilinear (old pytorch-fid), pil-bicubic-float (clean-fid's clean)."
  flags.DEFINE_string("resize", None, about, flag_values=values)
  number("splits", "Parts of the Inception score.")
  flags.DEFINE_bool("shuffle", None, "Shuffle samples before the Inception score.", flag_values=values)
  number("subsets", "Subsets of KID.")
  number("subset_size", "Images of each.")
  flags.DEFINE_string("kernel", None, "Of KID: polynomial or rbf.", flag_values=values)
  flags.DEFINE_float("kernel_width", None, "Of rbf, 10 by default.", flag_values=values)
  number("neighbours", "Of precision, recall, density and coverage.")
  about = "Of what metrics draw: the order of --shuffle, the subsets of KID; 2020 by default."
  flags.DEFINE_integer("metric_seed", None, about, lower_bound=0, flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Load, measure, record, print."""
  out = values.out or values.workdir
  if values.images and (values.model or values.workdir):
    raise UserError("--images", values.images, "either images or a model (--model, --workdir)")
  if not out and not values.images:
    raise UserError("--out", "", "where the records go, when --workdir is not given")
  if not values.features:
    raise UserError("--features", "", "inception, dinov2-l, ..., or a folder that train-features wrote")
  if out:
    check_writable("--out", RunFolder.at(out).evaluations)
  start()
  from cm_jax.evaluation.features import load_features
  from cm_jax.evaluation.references import check_reference

  if values.reference:  # before a network is fetched
    check_reference(values.reference)
  shared: dict[str, Any] = {
    "features": load_features(values.features, values.weights),
    "reference": values.reference,
    "train_source": values.train_source,
    "test_source": values.test_source,
    "num": values.num,
    "batch_size": values.batch_size,
    "out": out,
    "again": values.again,
    "progress": values.progress,
    "metrics": None if values.metrics is None else _names(values.metrics),
    "convention": values.convention,
    "few": values.few,
    "nearest": values.nearest,
    **{key: values[key].value for key in CHOICES},
  }
  measured = _images(values, shared) if values.images else _model(values, shared)
  if is_main():
    _print(measured, out)


def _images(values: flags.FlagValues, shared: dict[str, Any]) -> "Measured":
  from cm_jax.data.sources import Framing
  from cm_jax.evaluation.evaluate import evaluate_images

  framing = Framing(values.crop, values.resolution or 0, values.alpha, values.exif)
  return evaluate_images(values.images, framing=framing, **shared)


def _model(values: flags.FlagValues, shared: dict[str, Any]) -> "Measured":
  from cm_jax.evaluation.evaluate import evaluate
  from cm_jax.sampling.doubts import doubts

  seeds = [values.seed] if values.seeds is None else _seeds(values.seeds)
  models = _models(values, _steps(values), _names(values.average))
  first = next(models)
  samplers = read_samplers(values, first, values.sigmas or ())
  notice(*doubts(first, samplers, values.guidance))

  def all_models() -> Iterator["Model"]:
    yield first
    yield from models

  return evaluate(all_models(), samplers, seed=seeds, guidance=values.guidance, **shared)


def _models(
  values: flags.FlagValues, steps: Sequence[int | str], averages: Sequence[str]
) -> Iterator["Model"]:
  """Yield the models that are measured, each loaded when its turn comes."""
  for step in steps:
    for average in averages:
      yield load(values, step, average)


def _steps(values: flags.FlagValues) -> list[int | str]:
  if not values.all_checkpoints:
    return [values.step]
  from cm_jax.training.checkpoint import CheckpointStore

  if values.step != -1:
    raise UserError("--step", values.step, "no step beside --all_checkpoints")
  path = values.model or values.workdir
  steps = CheckpointStore(path).steps()
  if not steps:
    raise UserError("--all_checkpoints", path, "a run with checkpoints")
  return list(steps)


def _names(text: str) -> list[str]:
  return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
  """Read "0,1,2".

  Raises:
    UserError: Not such numbers, or one twice.
  """
  parts = _names(text)
  seeds = [int(part) for part in parts if part.isdecimal() and int(part) < 2**32]
  if not seeds or len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
    raise UserError("--seeds", text, "numbers from 0 to 2^32 - 1, each once, such as 0,1,2")
  return seeds


def _print(measured: "Measured", out: str | None) -> None:
  from cm_jax.evaluation.report import last_metrics
  from cm_jax.evaluation.tables import over_seeds, rows_of

  shown = [*measured.made, *measured.found]
  print(rows_of(shown, out or "images", last_metrics(out) if out else None))
  for line in (*over_seeds(shown), *measured.told):
    print(line)
  places = [
    len({(r.step, r.average, r.nfe, r.sigmas, r.seed) for r in part if r.nfe is not None or r.samples})
    for part in (measured.made, measured.found)
  ]
  earlier = f", {places[1]} as before (--again measures anew)" if places[1] else ""
  what = "image set" if any(record.samples for record in shown) else "sampler"
  where = RunFolder.at(out).evaluations if out else "not recorded (--out=FOLDER does)"
  print(f"{where}: {counted(places[0], what)} measured{earlier}")
