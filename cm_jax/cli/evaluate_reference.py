"""Make the statistics of real images that samples are compared with, or check a file of them.

  python -m cm_jax evaluate reference --source=digits --features=digits --out=digits.npz
  python -m cm_jax evaluate reference --source=zip:cifar10.zip --features=inception --out=cifar10.npz
  python -m cm_jax evaluate reference --check=cifar10-32x32.npz --features=inception

The .npz holds mu and sigma (mu_s, sigma_s of networks with spatial features), n, and a description as JSON:
the network's hash, resize, convention, size of the images, data set. An evaluation of something else
refuses it. --source also takes a folder, .zip or .npz.
"""

from absl import flags

from cm_jax.cli.evaluate import CHOICES, define_convention
from cm_jax.cli.flags import define_framing, is_main, start
from cm_jax.errors import UserError
from cm_jax.storage.whole import check_writable


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = lambda name, about: flags.DEFINE_string(name, None, about, flag_values=values)
  text("source", "The images: a source, or a folder, .zip, .npz or .npy.")
  define_framing(values)
  text("features", "inception, dinov2-b, dinov2-l, digits or another name, or what train-features wrote.")
  text("weights", "File of the features' weights, where they are not to be fetched.")
  define_convention(values)
  text("out", "The .npz to write.")
  text("check", "A file of statistics to look at instead.")


def main(values: flags.FlagValues) -> None:
  """Make or check, and say what it is."""
  if bool(values.source) == bool(values.check):
    raise UserError("--source", values.source or "", "the images, or with --check a file of statistics")
  if not values.features:
    raise UserError("--features", "", "inception, dinov2-l, ..., or a folder that train-features wrote")
  if values.source and not (values.out or "").endswith(".npz"):
    raise UserError("--out", values.out or "", "a file to write, FILE.npz")
  if values.source:
    check_writable("--out", values.out)
  start()
  from cm_jax.data.sources import Framing
  from cm_jax.evaluation.features import load_features
  from cm_jax.evaluation.references.made import checked, make_reference, told

  extractor = load_features(values.features, values.weights)
  if values.check:
    statistics, path = checked(values.check, extractor, values.convention, values.resize), values.check
  else:
    framing = Framing(values.crop, values.resolution or 0, values.alpha, values.exif)
    choices = {key: values[key].value for key in CHOICES}
    path = values.out
    statistics = make_reference(
      values.source, extractor, path, values.convention, framing, values.num, **choices
    )
  if is_main():
    print("\n".join(told(path, statistics)))
