"""Train the small classifier whose features stand in for Inception's on data too small for it.

  python -m cm_jax train-features --source=digits --out=runs/digits/features
  python -m cm_jax train-features --source=folder:photos --crop=center --resolution=64 --out=runs/features

A folder's classes are its folders; images of any size need the crop that the run has.

The Frechet distance in them is called after the data (FD-digits), never FID. What is complete in --out is
kept; --again trains anew.
"""

from absl import flags

from cm_jax.cli.flags import define_framing, is_main, start
from cm_jax.errors import UserError
from cm_jax.storage.whole import check_writable


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("source", "digits", "Labelled images.", flag_values=values)
  define_framing(values)
  flags.DEFINE_string("out", None, "Folder for features.safetensors and features.json.", flag_values=values)
  flags.DEFINE_integer(
    "seed", 0, "Of the initial weights and the batches.", lower_bound=0, flag_values=values
  )
  flags.DEFINE_bool("again", False, "Train although --out is complete.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Train and store, unless that is done."""
  if not values.out:
    raise UserError("--out", "", "the folder to write")
  check_writable("--out", f"{values.out}/features.json")
  start()
  from etils import epath

  from cm_jax.data.sources import Framing, images, labels, open_source
  from cm_jax.evaluation.features import load_classifier, save_features, train_features

  if not is_main():  # it is small, and every other host would make the same
    return
  if (epath.Path(values.out) / "features.json").exists() and not values.again:
    features = load_classifier(values.out)
  else:
    framing = Framing(values.crop, values.resolution or 0, values.alpha, values.exif)
    source = open_source(values.source, framing=framing)
    name = values.source.partition(":")[0]
    features = train_features(images(source), labels(source), values.seed, name=name)
    save_features(values.out, features)
  about = f"held-out accuracy {features.accuracy:.4f}, seed {features.seed}, sha256 {features.hash[:16]}"
  print(f"{values.out}: {about}")
