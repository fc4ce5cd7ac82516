"""Train a classifier whose features stand in for Inception's on data of one's own.

  python -m cm_jax train-features --source=digits --out=runs/digits/features
  python -m cm_jax train-features --source=zip:data/flowers.zip --name=flowers --out=runs/features
  python -m cm_jax train-features --source=folder:photos --crop=center --resolution=64 --out=runs/features

On digits it is a small network without normalisation; on any other labelled images a residual network of 0.3
to 0.6 million parameters, by the size of the images. A folder's classes are its folders; images of any size
need the crop that the run has.

The Frechet distance in them is called by --name (FD-flowers), never FID. What is complete in --out is kept;
--again trains anew.
"""

import re

from absl import flags

from cm_jax.cli.flags import define_framing, is_main, start
from cm_jax.errors import UserError
from cm_jax.storage.whole import check_writable, place


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  flags.DEFINE_string("source", "digits", "Labelled images.", flag_values=values)
  define_framing(values)
  flags.DEFINE_string("out", None, "Folder for features.safetensors and features.json.", flag_values=values)
  flags.DEFINE_integer(
    "seed", 0, "Of the initial weights and the batches.", lower_bound=0, flag_values=values
  )
  about = "What the distance is called by: FD-NAME; by default the kind of the source."
  flags.DEFINE_string("name", None, about, flag_values=values)
  flags.DEFINE_integer("num_steps", 2000, "Of 128 images, not on digits.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("flip", True, "Mirror images while training; not on digits.", flag_values=values)
  flags.DEFINE_bool("again", False, "Train although --out is complete.", flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Train and store, unless that is done."""
  if not values.out:
    raise UserError("--out", "", "the folder to write")
  check_writable("--out", f"{values.out}/features.json")
  start()
  from cm_jax.data.sources import Framing, class_names, images, labels, open_source
  from cm_jax.evaluation.features import FEATURES, load_trained, save_features, train_features, train_resnet

  if not is_main():  # it is small, and every other host would make the same
    return
  kind = values.source.partition(":")[0]
  name = values.name or kind
  if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) or name in set(FEATURES) - {kind}:
    raise UserError("--name", name, "letters, digits, . _ and -, and not that of published features")
  if (place(values.out) / "features.json").exists() and not values.again:
    features = load_trained(values.out)
  else:
    framing = Framing(values.crop, values.resolution or 0, values.alpha, values.exif)
    source = open_source(values.source, framing=framing)
    pixels, classes = images(source), labels(source)
    if kind == "digits":
      small = train_features(pixels, classes, values.seed, name=name)
      save_features(values.out, small)
      features = small
    else:
      own = train_resnet(
        pixels,
        classes,
        name,
        values.seed,
        values.num_steps,
        flip=values.flip,
        class_names=class_names(source),
      )
      own.save(values.out)
      features = own
  about = f"held-out accuracy {features.accuracy:.4f}, seed {features.seed}, sha256 {features.hash[:16]}"
  print(f"{values.out}: FD-{features.name}, {about}")
