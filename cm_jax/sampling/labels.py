"""Classes as people name them: a number, or the name that the data gave it."""

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
