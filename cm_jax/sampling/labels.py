"""Classes as people name them: a number, or the name that the data gave it."""

from collections.abc import Sequence

from cm_jax.errors import UserError, one_of
from cm_jax.models import Model


def class_number(model: Model, label: str | int, none: str = "none") -> int:
  """Return the number of a class that is given by its name or its number; a text is a name first.

  Args:
    model: Whose class.
    label: Its name, or its number.
    none: What is to be given for no class, for an error.

  Raises:
    UserError: The model has no such class.
  """
  names, count, text = model.class_names, model.num_classes, str(label)
  if isinstance(label, str) and text in names:
    return names.index(text)
  if text.isascii() and text.isdecimal() and int(text) < count:
    return int(text)
  if not count:
    raise UserError("label", label, f"{none}: the model has no classes")
  expected = f"0 to {count - 1}" + (f", or {none}" if none != "none" else "")
  raise UserError("label", label, f"{expected}; or {one_of(names, text)}" if names else expected)


def class_titles(num_classes: int, names: Sequence[str], count: int, label: int | None = None) -> list[str]:
  """Return what samples 0 to count - 1 are called in a picture: by their class, or not at all, [], without
  classes.

  Args:
    num_classes: Of the model; 0 for none.
    names: Of its classes, () where they have no more than a number.
    count: Of samples.
    label: The class of all of them; None: each in turn, as `generate.balanced_labels` says.

  >>> class_titles(2, ("cat", "dog"), 3), class_titles(2, (), 2, label=1), class_titles(0, (), 3)
  (['cat', 'dog', 'cat'], ['1', '1'], [])
  """
  classes = [label if label is not None else i % num_classes for i in range(count)] if num_classes else []
  return [names[number] if names else str(number) for number in classes]
