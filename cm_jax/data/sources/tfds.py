"""TensorFlow Datasets without TensorFlow: a prepared set's ArrayRecord files, read at random."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cm_jax.data.sources.classes import MAX_CLASSES, UNLABELLED, Classes, unlabelled
from cm_jax.data.sources.encoded import EncodedImages
from cm_jax.data.sources.files import file_stamp
from cm_jax.data.sources.tfds_classes import check_classes, check_files
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError

FORM = (
  "tfds:NAME, tfds:NAME:SPLIT or tfds:NAME:SPLIT:DATA_DIR, "
  "such as tfds:cifar10:train or tfds:imagenet_resized/64x64:train:/data"
)
_SPEC = re.compile(r"(?P<name>[\w./-]+)(:(?P<split>(?:[^:\[]|\[[^\]]*\])+)(:(?P<folder>.+))?)?")


@dataclasses.dataclass(frozen=True)
class TfdsSource(EncodedImages):
  """An image data set of tfds, prepared as ArrayRecord: its one image feature, its class label if any.

  `cm_jax data prepare --format=array_record` writes such sets; those that tfds itself prepares with
  `file_format="array_record"` do too.

  Args:
    spec: NAME[:SPLIT[:DATA_DIR]]; SPLIT is train by default and may be sliced, `train[:10%]`; DATA_DIR is by
      default TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises:
    UserError: Not of that form, not prepared, prepared as TFRecord, no such split, no or several image
      features.
  """

  spec: str

  def __post_init__(self):
    self.check(self.spec)
    _ = self._data

  @staticmethod
  def check(spec: str) -> None:
    """Raise UserError unless the spec has the right form and a folder of that name exists."""
    name, _, folder = parse(spec)
    if not (folder / name).is_dir():
      expected = f"a set prepared in {folder / name}: python -m cm_jax data prepare, or tfds"
      raise UserError("source", f"tfds:{spec}", expected)

  @functools.cached_property
  def _builder(self) -> Any:
    from tensorflow_datasets.core import read_only_builder

    name, _, folder = parse(self.spec)
    check_classes(folder / name)
    check_files(folder / name)
    try:
      return read_only_builder.builder_from_files(name, data_dir=folder)
    except Exception as error:  # tfds raises what it likes for damaged files
      expected = f"a whole prepared set in {folder / name} ({type(error).__name__}: {str(error)[:200]})"
      raise UserError("source", f"tfds:{self.spec}", expected) from error

  @functools.cached_property
  def _features(self) -> tuple[str, str | None]:
    import tensorflow_datasets as tfds

    features = dict(self._builder.info.features.items())
    pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    classes = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if "image" in pictures:
      pictures = ["image"]
    if len(pictures) != 1:
      expected = f"a set with one image feature, not {pictures or sorted(features)}"
      raise UserError("source", f"tfds:{self.spec}", expected)
    return pictures[0], "label" if "label" in classes else (classes[0] if len(classes) == 1 else None)

  @functools.cached_property
  def _data(self) -> Any:
    import tensorflow_datasets as tfds

    split, decoders = parse(self.spec)[1], {self._features[0]: tfds.decode.SkipDecoding()}
    try:
      return self._builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
      expected = f"a set prepared with file_format='array_record' ({str(error).strip().splitlines()[0]})"
      raise UserError("source", f"tfds:{self.spec}", expected) from error
    except (ValueError, KeyError) as error:
      expected = f"one of the splits {', '.join(sorted(self._builder.info.splits))}, or a slice of one"
      raise UserError("source", f"tfds:{self.spec}", expected) from error

  @functools.cached_property
  def classes(self) -> Classes:
    """The labels, and the classes' names; reads every record once."""
    key = self._features[1]
    if key is None:
      return unlabelled(len(self))
    found = in_order(lambda index: self._data[index][key], range(len(self)), "labels")
    return Classes(np.fromiter(found, np.int32, len(self)), self.class_names)

  @property
  def class_names(self) -> tuple[str, ...]:
    """As the set's description says; () if they are no more than the classes' numbers."""
    key, count = self._features[1], self.num_classes
    if key is None or not count:
      return ()
    names = tuple(self._builder.info.features[key].names)
    return () if names == tuple(map(str, range(count))) else names

  @property
  def num_classes(self) -> int:
    """As the set's description says; 0 if unlabelled."""
    key = self._features[1]
    number = 0 if key is None else int(self._builder.info.features[key].num_classes or 0)
    if number > MAX_CLASSES:
      raise UserError(f"tfds:{self.spec}", f"{number} classes", f"at most {MAX_CLASSES} classes")
    return number

  def record(self, index: int) -> tuple[bytes, int]:
    """Return (the image's file, its label)."""
    image, label = self._features
    try:
      stored = self._data[int(index)]
    except Exception as error:  # the record reader raises what it likes for a damaged file
      given = f"unreadable: {str(error).strip()[:200]}"
      raise UserError(self.where(index), given, "a whole record") from error
    return stored[image], UNLABELLED if label is None else int(stored[label])

  def where(self, index: int) -> str:
    """Return the set's name and the record's number."""
    return f"tfds:{self.spec}[{index}]"

  def stamp(self) -> Iterable[str]:
    """Yield the split, and path, size and time of the set's files."""
    yield f"{parse(self.spec)[1]}\n"
    files = (path for path in Path(self._builder.data_dir).iterdir() if path.is_file())
    yield from map(file_stamp, sorted(files))

  def __len__(self) -> int:
    return len(self._data)


def parse(spec: str) -> tuple[str, str, Path]:
  """Return (name, split, data folder) of NAME[:SPLIT[:DATA_DIR]].

  Raises:
    UserError: Not of that form.

  >>> parse("cifar10:train[:10%]:/data")
  ('cifar10', 'train[:10%]', PosixPath('/data'))
  """
  name, split, folder = parts(spec)
  return name, split, Path(folder).expanduser()


def parts(spec: str) -> tuple[str, str, str]:
  """Return (name, split, data folder) as `parse` does, the folder as it is written: it may be in a store.

  Raises:
    UserError: Not of that form.

  >>> parts("mnist:test:s3://data/sets")
  ('mnist', 'test', 's3://data/sets')
  """
  match = _SPEC.fullmatch(spec)
  if match is None or ".." in match["name"].split("/"):
    raise UserError("source", f"tfds:{spec}", FORM)
  folder = match["folder"] or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return match["name"].strip("/"), match["split"] or "train", folder
