"""A data set of the user's own code."""

from collections.abc import Callable

import numpy as np

from cm_jax.errors import UserError
from cm_jax.outside import imported
from cm_jax.types import Source

FORM = "python:MODULE:FUNCTION, a function without arguments that returns a data set"
NEEDED = ("__len__", "__getitem__", "num_classes", "fingerprint")


class PythonSource:
  """Makes `python:MODULE:FUNCTION` a source: what `MODULE.FUNCTION()` returns, once its first image was seen.

  The data set has `len`, `[i] -> {"image": uint8 [H,W,C] or float32, "label": int}`, `num_classes` and
  `fingerprint`, and can be pickled if it is too large for RAM. MODULE is imported as any other, so it must be
  installed or lie in the working folder.
  """

  def __call__(self, spec: str) -> Source:
    """Return the data set.

    Args:
      spec: MODULE:FUNCTION.

    Raises:
      UserError: There is no such function, or it returns something else.
    """
    source, given = _function(spec)(), f"python:{spec}"
    missing = [name for name in NEEDED if name not in dir(source)]
    if missing:
      expected = f"a data set with {', '.join(missing)}, which {type(source).__name__} lacks"
      raise UserError("source", given, expected)
    if not len(source):
      raise UserError("source", given, "a data set that is not empty")
    item = source[0]
    image = np.asarray(item["image"]) if isinstance(item, dict) and "image" in item else None
    if image is None or image.ndim != 3 or image.dtype not in (np.uint8, np.float32) or "label" not in item:
      found = sorted(item) if image is None else f"{image.dtype} {list(image.shape)}"
      expected = '{"image": uint8 [H, W, C] or float32, "label": int, -1 for none}'
      raise UserError(f"{given}[0]", found, expected)
    return source

  def check(self, spec: str) -> None:
    """Raise UserError unless the module has such a function."""
    _function(spec)


def _function(spec: str) -> Callable[[], Source]:
  function = imported(f"python:{spec}", "source", FORM)
  if not callable(function):
    raise UserError("source", f"python:{spec}", FORM)
  return function
