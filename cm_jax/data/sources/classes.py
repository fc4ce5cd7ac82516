"""Labels of a data set: class numbers, the classes' names, EDM's `dataset.json`, and one set's classes in
another's numbers."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from cm_jax.errors import UserError, one_of
from cm_jax.storage import bounded
from cm_jax.types import Source

UNLABELLED = -1
MAX_CLASSES = 1 << 16  # three times ImageNet's 21,841: counts and embeddings of all of them are made
_SHOWN = 10  # classes that a line lists


class Classes(NamedTuple):
  """What is known of the classes of a set.

  Attributes:
    labels: int32 [N], -1 if unlabelled.
    names: Of every class, in the order of their numbers; () where they have none.
  """

  labels: np.ndarray
  names: tuple[str, ...] = ()


@runtime_checkable
class Labelled(Protocol):
  """A source that knows its labels without reading its images."""

  @property
  def labels(self) -> np.ndarray: ...


@runtime_checkable
class Named(Protocol):
  """A source whose classes have names."""

  @property
  def class_names(self) -> tuple[str, ...]: ...


def labels(source: Source) -> np.ndarray:
  """Return the labels of a source: int32 [N], -1 where unlabelled.

  Sources with a `labels` array of their own are not decoded for it.
  """
  if isinstance(source, Labelled):
    return np.asarray(source.labels, np.int32)
  return np.array([source[index]["label"] for index in range(len(source))], np.int32)


def class_names(source: Source) -> tuple[str, ...]:
  """Return the names of a source's classes in the order of their numbers, () where they have none."""
  return tuple(source.class_names) if isinstance(source, Named) else ()


def count_classes(labels: np.ndarray) -> int:
  """Return the number of classes of labels from 0; 0 if unlabelled.

  >>> count_classes(np.array([0, 2])), count_classes(np.array([-1, -1]))
  (3, 0)
  """
  return int(labels.max()) + 1


def class_numbers(classes: np.ndarray | None, count: int, where: str, given: str, item: str) -> np.ndarray:
  """Return an array of class numbers as labels: int32 [N]; all -1 for None.

  Args:
    classes: As it was stored.
    count: N, how many there must be.
    where: What to call the file in an error.
    given: What comes before the array's type there.
    item: What each of them is of: "image".

  Raises:
    UserError: Not N integers from 0, or one that no set of images has.

  >>> class_numbers(np.array([2, 0], np.int64), 2, "a.npz", "labels ", "image").tolist()
  [2, 0]
  """
  if classes is None:
    return np.full(count, UNLABELLED, np.int32)
  is_right = classes.shape == (count,) and classes.dtype.kind in "iu"
  if not is_right or classes.min() < 0:
    expected = f"{count} class numbers from 0, one for every {item}"
    raise UserError(where, f"{given}{classes.dtype} {list(classes.shape)}", expected)
  if (largest := int(classes.max())) >= MAX_CLASSES:
    raise UserError(where, f"{given}up to {largest}", f"class numbers below {MAX_CLASSES}")
  return np.asarray(classes, np.int32)


def unlabelled(count: int) -> Classes:
  """Return what is known of the classes of so many images without any."""
  return Classes(np.full(count, UNLABELLED, np.int32))


def folder_classes(names: Sequence[str]) -> Classes:
  """Return the classes of images that lie in class folders: numbered in the order of their names as texts.

  So do ADM, EDM and torchvision, also where the names are numbers ("10" comes before "2"): that is what the
  classes' names are kept for.

  Args:
    names: CLASS/IMAGE.

  >>> folder_classes(["ship/1.png", "cat/1.png"])
  Classes(labels=array([1, 0], dtype=int32), names=('cat', 'ship'))
  """
  found, numbers = np.unique([name.split("/")[0] for name in names], return_inverse=True)
  return Classes(numbers.astype(np.int32), tuple(map(str, found)))


def described_classes(data: bytes, names: Sequence[str], where: str) -> Classes:
  """Read EDM's `dataset.json`: {"labels": [[name, class], ...]} or {"labels": null}; perhaps "class_names".

  Args:
    data: The file's bytes.
    names: The images' names relative to the data set's root, with forward slashes.
    where: What to call the file in an error.

  Raises:
    UserError: Not of that form; an image without a label; a label without its image; names that
      are fewer than the classes.

  >>> text = b'{"labels": [["b.png", 1], ["a.png", 0]], "class_names": ["cat", "ship"]}'
  >>> described_classes(text, ["a.png", "b.png"], "dataset.json")
  Classes(labels=array([0, 1], dtype=int32), names=('cat', 'ship'))
  """
  expected = 'JSON {"labels": [[NAME, CLASS], ...]} or {"labels": null}'
  described = bounded.parse_object(data, where, expected, bounded.LARGE)
  try:
    pairs, called = described["labels"], described.get("class_names") or []
    slashed = lambda name: str(name).replace("\\", "/").removeprefix("./")
    known = {} if pairs is None else {slashed(name): label for name, label in pairs}
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(where, f"{type(error).__name__}: {error}", expected) from error
  if pairs is None:
    return unlabelled(len(names))
  if len(known) != len(pairs):
    raise UserError(where, f"{len(pairs) - len(known)} image(s) labelled twice", "one label for every image")
  for name, label in known.items():
    if type(label) is not int or not 0 <= label < MAX_CLASSES:
      raise UserError(where, f"label {label!r} of {name}", f"a class number from 0, below {MAX_CLASSES}")
  without, odd = set(names) - set(known), set(known) - set(names)
  for missing, problem in ((without, "no label for"), (odd, "a label for the missing image")):
    if missing:
      given = f"{problem} {min(missing)} ({len(missing)} such)"
      raise UserError(where, given, "one label for every image")
  numbers = np.array([known[name] for name in names], np.int32)
  is_right = isinstance(called, list) and all(isinstance(name, str) and name for name in called)
  if called and not (is_right and len(set(called)) == len(called) >= count_classes(numbers)):
    expected = f"a name of its own for each of the {count_classes(numbers)} classes"
    raise UserError(f"{where}: class_names", called, expected)
  return Classes(numbers, tuple(called))


def renumbered(given: Classes, names: Sequence[str], count: int, spec: str) -> np.ndarray:
  """Return the labels of a set in the numbers of a model: by the classes' names where both have them.

  Args:
    given: Of the set.
    names: Of the model's classes; () where they have none.
    count: Number of the model's classes.
    spec: The set, for an error.

  Raises:
    UserError: The set has a class that the model has not.

  >>> renumbered(Classes(np.array([0, 1, 1]), ("a", "c")), ("a", "b", "c"), 3, "folder:test").tolist()
  [0, 2, 2]
  """
  here = [int(label) for label in np.unique(given.labels) if label != UNLABELLED]
  if given.names and names:
    unknown = [given.names[label] for label in here if given.names[label] not in names]
    if unknown:
      raise UserError(
        "source", spec, f"no class that the model has not, such as {unknown[0]}: {one_of(names, unknown[0])}"
      )
    to = np.array([names.index(name) if name in names else UNLABELLED for name in given.names] + [UNLABELLED])
    return to[given.labels].astype(np.int32)  # the last is that of -1
  if here and here[-1] >= count:
    raise UserError("source", spec, f"class numbers below {count}, the model's classes, not {here[-1]}")
  return given.labels


def listed(names: Sequence[str], count: int, present: Collection[int]) -> list[str]:
  """Return what there is to tell of the classes of a set: their numbers and names, and which have no image.

  Args:
    names: In the order of the classes' numbers; () where they have none.
    count: Number of classes.
    present: The numbers of which there are images.

  >>> listed(("cat", "ship"), 2, {0, 1})
  ['2 classes: 0 cat, 1 ship']
  >>> listed((), 4, {1, 3})
  ['4 classes; of 0, 2 there is no image (numbers are kept as they are)']
  """
  if not count:
    return []
  empty = [number for number in range(count) if number not in present]
  name = lambda number: f"{number} {names[number]}" if names else str(number)
  several = lambda numbers: (
    ", ".join(map(name, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
  )
  line = f"{count} class{'es' * (count > 1)}"
  if names:
    line += f": {several(range(count))}"
  if empty:
    line += f"; of {several(empty)} there is no image (numbers are kept as they are)"
  return [line]
