"""Labels of a data set: what none is, EDM's `dataset.json`, all of them without decoding an image."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from cm_jax.errors import UserError
from cm_jax.storage import bounded
from cm_jax.types import Source

UNLABELLED = -1
MAX_CLASSES = 1 << 16  # three times ImageNet's 21,841: counts and embeddings of all of them are made


@runtime_checkable
class Labelled(Protocol):
  """A source that knows its labels without reading its images."""

  @property
  def labels(self) -> np.ndarray: ...


def labels(source: Source) -> np.ndarray:
  """Return the labels of a source: int32 [N], -1 where unlabelled.

  Sources with a `labels` array of their own are not decoded for it.
  """
  if isinstance(source, Labelled):
    return np.asarray(source.labels, np.int32)
  return np.array([source[index]["label"] for index in range(len(source))], np.int32)


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


def edm_labels(data: bytes, names: Sequence[str], where: str) -> np.ndarray:
  """Read the labels of EDM's `dataset.json`: {"labels": [[name, class], ...]} or {"labels": null}.

  Args:
    data: The file's bytes.
    names: The images' names relative to the data set's root, with forward slashes.
    where: What to call the file in an error.

  Returns:
    int32 [N] in the order of `names`; all -1 if there are none.

  Raises:
    UserError: Not of that form; an image without a label; a label without its image.

  >>> edm_labels(b'{"labels": [["b.png", 1], ["a.png", 0]]}', ["a.png", "b.png"], "dataset.json").tolist()
  [0, 1]
  """
  expected = 'JSON {"labels": [[NAME, CLASS], ...]} or {"labels": null}'
  described = bounded.parse_object(data, where, expected, bounded.LARGE)
  try:
    pairs = described["labels"]
    known = {} if pairs is None else {str(name): label for name, label in pairs}
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(where, f"{type(error).__name__}: {error}", expected) from error
  if pairs is None:
    return np.full(len(names), UNLABELLED, np.int32)
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
  return np.array([known[name] for name in names], np.int32)
