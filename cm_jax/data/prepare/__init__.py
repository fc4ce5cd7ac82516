"""A data set out of a download, a folder, a zip, arrays: crop, write, read back, then put in place."""

import contextlib
import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm_jax.data.prepare.cifar import ARCHIVES, Split, find_archive, read_archive
from cm_jax.data.prepare.conversion import Conversion, Reader, Recipe, as_it_is, reader
from cm_jax.data.prepare.kept import Kept
from cm_jax.data.prepare.place import KEPT, check_out, filling, put
from cm_jax.data.prepare.writers import own_info, stock_info, write_array_record, write_zip
from cm_jax.data.sources import SOURCES, class_names, open_source, told, validate_source
from cm_jax.data.sources.archives import ZipSource
from cm_jax.data.sources.encoded import EncodedImages
from cm_jax.data.sources.fingerprints import fingerprint
from cm_jax.data.sources.framing import MAX_RESOLUTION, Framing
from cm_jax.data.sources.tfds import TfdsSource
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError, one_of
from cm_jax.storage.pictures import save_grid

FORMATS = ("array_record", "zip")
_SPLIT = "train"  # of a set that has but one


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What was written of one split.

  Args:
    spec: How `open_source` names it.
    shape: (H, W, C) of every image.
    labels: int32 [N], -1 if unlabelled.
    num_classes: 0 if unlabelled.
    fingerprint: Sha256 as the source that `spec` names will state it.
    skipped: A line for every image that was left out.
    enlarged: Number of images that were smaller than the resolution.
    told: What else a person should know, a line each: the classes' names, what kinds of files were read.
  """

  spec: str
  shape: tuple[int, ...]
  labels: np.ndarray
  num_classes: int
  fingerprint: str
  skipped: Sequence[str]
  enlarged: int
  told: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Make a data set: `Prepare(source, out)()`.

  Nothing is at `out` until all is written, read back and decoded again. Images that are ready are kept in a
  hidden folder beside it, for an object store in the cache: the same command goes on with them after it was
  stopped or killed.

  Args:
    source: cifar10, cifar100, or what `open_source` opens, latents excepted; with a crop of images of any
      sizes.
    out: What is made, here or in an object store: a .zip file, or a folder for ArrayRecord. Beside it lies
      OUT.png, some of the images.
    resolution: Side of the square images, 1 to 4096; None: there is no crop and the images keep their size.
    crop, alpha, exif: Of `Framing`: how an image of any kind and size is read and cropped.
    format: zip (EDM's form) or array_record (a folder for tfds).
    split: train or test, where there is a choice: the split of CIFAR, the name that ArrayRecord files get.
    input: The archive of cifar10 or cifar100, if it need not be downloaded.
    skip_corrupt: Leave out what cannot be decoded.
    name: tfds' name of an ArrayRecord set; by default made of the source's.

  Raises:
    UserError: An argument is unknown, out of range or of no use here; `out` is there already; the source is
      missing.
  """

  source: str
  out: str
  resolution: int | None = None
  crop: str = "none"
  alpha: str = ""
  exif: bool = True
  format: str = "zip"
  split: str | None = None
  input: str | None = None
  skip_corrupt: bool = False
  name: str | None = None

  def __post_init__(self):
    if self.format not in FORMATS:
      raise UserError("format", self.format, one_of(FORMATS, self.format))
    if self.resolution == 0:
      raise UserError("resolution", 0, f"1 to {MAX_RESOLUTION} pixels")
    _ = self._framing
    self._check_source()
    self._check_choices()
    check_out(self.out, self.format, self.source)

  @property
  def _framing(self) -> Framing:
    return Framing(self.crop, self.resolution or 0, self.alpha, self.exif)

  def _check_source(self) -> None:
    scheme = self.source.partition(":")[0]
    known = [*ARCHIVES, *(name for name in SOURCES if name != "latents")]
    if scheme not in known or (scheme in ARCHIVES and scheme != self.source):
      raise UserError("source", self.source, one_of(known, self.source))
    if scheme not in ARCHIVES:
      validate_source(self.source)

  def _check_choices(self) -> None:
    is_cifar, cifar = self.source in ARCHIVES, f"the source {' or '.join(ARCHIVES)}"
    if self.split not in (None, "train", "test"):
      raise UserError("split", self.split, "train or test")
    if self.input is not None and not is_cifar:
      raise UserError("input", self.input, f"only with {cifar}")
    if self.name is not None and (self.format == "zip" or self._stock):
      expected = "only with the format array_record, and where the set has no name of its own"
      raise UserError("name", self.name, expected)
    if self.split is not None and self._stock:
      raise UserError("split", self.split, "none here: both splits are written")
    if self.split is not None and self.format == "zip" and not is_cifar:
      raise UserError("split", self.split, f"only with {cifar}, or the format array_record")
    if self.format == "array_record" and not self._stock:
      self._check_name()

  def _check_name(self) -> None:
    import tensorflow_datasets as tfds

    name = self._set_name
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
      raise UserError("name", name, "a lower-case letter, then such letters, digits, underscores")
    if name in tfds.list_builders(with_community_datasets=False):
      raise UserError("name", name, f"a name that tfds does not use itself, such as {name}_images")

  @property
  def _stock(self) -> bool:
    """Whether the set is one that tfds itself knows."""
    return self.format == "array_record" and self.source in ARCHIVES and self.crop == "none"

  @property
  def _set_name(self) -> str:
    if self._stock:
      return self.source
    if self.name is not None:
      return self.name
    if self.source in ARCHIVES:
      return f"{self.source}_{self.resolution}x{self.resolution}"
    stem = Path(self.source.partition(":")[2] or self.source).stem
    return re.sub("[^a-z0-9]+", "_", stem.lower()).strip("_") or "images"

  def __call__(self) -> list[Prepared]:
    """Read, write, read back, and put the set in its place.

    Returns:
      The splits written: both of a CIFAR set that tfds knows, else one.

    Raises:
      UserError: The source, an image of it or the place to write to is not what it should be; nothing is at
        `out` then.
    """
    splits, classes, about = self._open()
    try:
      with filling(self.out) as part, contextlib.ExitStack() as opened:
        for split in splits.values():
          opened.enter_context(contextlib.closing(split.images))
        self._go_on(part, splits)
        place = part / ("set.zip" if self.format == "zip" else "set")
        self._write(place, splits, classes)
        prepared = [self._read_back(place, name, split, about) for name, split in splits.items()]
        save_grid(next(iter(splits.values())).samples(), part / "grid.png")
        put(place, part / "grid.png", self.out)
    except OSError as error:
      expected = f"a place that can be written, with room enough ({error.strerror or error})"
      raise UserError("out", self.out, expected) from error
    return prepared

  def _go_on(self, part: Path, splits: Mapping[str, Conversion]) -> None:
    """Keep the images on the way; say how many a run that was stopped has made."""
    kept = {name: Kept(part / KEPT / name) for name in splits}
    for name, split in splits.items():
      split.keep(kept[name])
    if found := sum(map(len, kept.values())):
      print(
        f"{self.out}: goes on with {found:,} images that were made before it was stopped", file=sys.stderr
      )

  def _open(self) -> tuple[dict[str, Conversion], dict[str, list[str]], list[str]]:
    """Return the splits, the names of the classes of every label, and what is to be told."""
    framing, skip = self._framing, self.skip_corrupt
    if self.source not in ARCHIVES:
      source = open_source(self.source, framing=framing)
      if isinstance(source, EncodedImages):
        channels = source.shape[2] if framing.crops else 0
      else:
        channels = np.asarray(source[0]["image"]).shape[-1]
      # what is cropped here is read as it is
      whole = source if isinstance(source, EncodedImages) else open_source(self.source)
      recipe = Recipe(framing, channels, skip)
      conversion = Conversion(recipe, reader(whole, self.source), len(source), source.num_classes)
      return {self.split or _SPLIT: conversion}, {"label": list(class_names(source))}, told(source)
    splits, classes = read_archive(self.source, find_archive(self.source, self.input))
    conversions = {}
    for name in splits if self._stock else [self.split or _SPLIT]:
      split = splits[name]
      read, recipe = _cifar_reader(split, f"{self.source} {name}"), Recipe(framing, 3, skip)
      labels = split.labels
      conversions[name] = Conversion(recipe, read, len(split.pixels), len(classes["label"]), labels)
    return conversions, classes, []

  def _write(
    self, place: Path, splits: Mapping[str, Conversion], classes: Mapping[str, Sequence[str]]
  ) -> None:
    if self.format == "zip":
      (split,) = splits.values()
      write_zip(place, ((image.png, image.label) for image in split.images), classes["label"])
    elif self._stock:
      info = stock_info(self.source, place, classes)
      write_array_record(info, {name: stock_examples(name, split) for name, split in splits.items()})
    else:
      ((name, split),) = splits.items()
      first = next(split.images)
      about = f"{self.source}, crop {self.crop}, prepared by cm_jax."
      names = classes["label"]
      info = own_info(self._set_name, place, first.shape, split.num_classes, about, names)
      keys = ("image", "label") if split.num_classes else ("image",)
      images = itertools.chain([first], split.images)
      examples = (dict(zip(keys, (image.png, image.label), strict=False)) for image in images)
      write_array_record(info, {name: examples})

  def _read_back(self, place: Path, name: str, split: Conversion, about: Sequence[str]) -> Prepared:
    written: EncodedImages
    if self.format == "zip":
      written, spec = ZipSource(str(place)), f"zip:{self.out}"
    else:
      prefix = f"{self._set_name}:{name}"
      written, spec = TfdsSource(f"{prefix}:{place}"), f"tfds:{prefix}:{self.out}"
    labels = np.array(split.labels, np.int32)
    if len(written) != len(labels) or not np.array_equal(written.labels, labels):
      raise UserError(spec, "other labels than were written", "a disk that keeps what is written to it")
    blobs = in_order(written.blob, range(len(written)), "reading back")
    stated, counts = fingerprint(f"uint8 {split.shape}", blobs, labels), (split.skipped, split.enlarged)
    return Prepared(spec, split.shape, labels, written.num_classes, stated, *counts, about)


def _cifar_reader(split: Split, name: str) -> Reader:
  def read(index: int) -> tuple[np.ndarray, int]:
    return split.pixels[index], int(split.labels["label"][index])

  return Reader(read, as_it_is, lambda index: f"{name}, image {index}")


def stock_examples(name: str, split: Conversion) -> Iterator[dict[str, Any]]:
  """Yield the examples of a split of CIFAR with the features that tfds' own sets have.

  Args:
    name: train or test.
    split: Its images and every label.
  """
  for image in split.images:
    every = {label: int(classes[image.index]) for label, classes in split.every_label.items()}
    yield {"id": f"{name}_{image.index:05d}", "image": image.png, **every}
