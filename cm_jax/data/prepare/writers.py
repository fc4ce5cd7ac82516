"""Data sets on their way to the disk: EDM's zip, and ArrayRecord for tfds; images come one by one."""

import contextlib
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm_jax.data.sources.classes import UNLABELLED
from cm_jax.storage.pictures import png_name
from cm_jax.storage.samples import zip_entry

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

IMAGES_PER_SHARD = 1 << 16
_AT_A_TIME = 256  # every addition writes the set's description anew


def write_zip(path: Path, images: Iterable[tuple[bytes, int]], class_names: Sequence[str] = ()) -> None:
  """Write EDM's form: PNG files called by `png_name`, labels and classes' names in `dataset.json`.

  Files are stored, not compressed again. The same images give the same bytes: no times are stored.

  Args:
    path: The file.
    images: Of every image the PNG file and the class, -1 for all if unlabelled.
    class_names: In the order of the classes' numbers, if they have names; EDM's own reader passes over them.
  """
  labels = []
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    for index, (png, label) in enumerate(images):
      name = png_name(index)
      archive.writestr(zip_entry(name), png)
      labels.append([name, label])
    unlabelled = any(label == UNLABELLED for _, label in labels)
    named = {"class_names": list(class_names)} if class_names and not unlabelled else {}
    described = {"labels": None if unlabelled else labels, **named}
    archive.writestr(zip_entry("dataset.json"), json.dumps(described))


def write_array_record(
  info: "tfds.core.DatasetInfo", splits: Mapping[str, Iterable[Mapping[str, Any]]]
) -> None:
  """Write the splits of a set into `info.data_dir`, in order: tfds reads them without TensorFlow.

  tfds' own builders shuffle, which above 1 GB they cannot do without TensorFlow.

  Args:
    info: From `stock_info` or `own_info`.
    splits: The examples of every split; images as PNG files.

  Raises:
    OSError: The disk is full, or what else keeps a file from being written.
  """
  from tensorflow_datasets.core.sequential_writer import SequentialWriter

  Path(info.data_dir).mkdir(parents=True)
  writer = SequentialWriter(info, max_examples_per_shard=IMAGES_PER_SHARD, file_format="array_record")
  writer.initialize_splits(list(splits))
  for split, examples in splits.items():
    rest = iter(examples)
    while some := list(itertools.islice(rest, _AT_A_TIME)):
      with _as_os_error():
        writer.add_examples({split: some})
  with _as_os_error():
    writer.close_all()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  try:
    yield
  except RuntimeError as error:  # what the record writer raises for a full disk
    raise OSError(str(error)) from error


def stock_info(name: str, folder: Path, classes: Mapping[str, Sequence[str]]) -> "tfds.core.DatasetInfo":
  """Describe a set just as tfds' own builder of that name does, so that this finds what is written.

  Args:
    name: cifar10 or cifar100.
    folder: tfds' data_dir.
    classes: Of every label the names of its classes.
  """
  import tensorflow_datasets as tfds

  info = tfds.builder_cls(name)(data_dir=folder, file_format="array_record").info
  for label, names in classes.items():
    info.features[label].names = list(names)
  return info


def own_info(
  name: str,
  folder: Path,
  shape: Sequence[int],
  num_classes: int,
  description: str,
  class_names: Sequence[str] = (),
) -> "tfds.core.DatasetInfo":
  """Describe a set of features `image` and, if there are classes, `label`.

  Args:
    name: Lower-case letters, digits and underscores.
    folder: tfds' data_dir.
    shape: (H, W, C) of every image.
    num_classes: 0 if unlabelled.
    description: A sentence for readers.
    class_names: In the order of the classes' numbers; () where they have none.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.dataset_info import DatasetIdentity

  version = tfds.core.Version("1.0.0")
  place = str(folder / name / str(version))
  identity = DatasetIdentity(name=name, version=version, data_dir=place, module_name="cm_jax")
  features: dict[str, Any] = {"image": tfds.features.Image(shape=tuple(shape), encoding_format="png")}
  if num_classes:
    named = {"names": list(class_names)} if class_names else {"num_classes": num_classes}
    features["label"] = tfds.features.ClassLabel(**named)
  keys = ("image", "label") if num_classes else None
  return tfds.core.DatasetInfo(
    builder=identity,
    description=description,
    features=tfds.features.FeaturesDict(features),
    supervised_keys=keys,
    disable_shuffling=True,
  )
