"""What reading a file of others can end with, as one line about the file."""

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator

from cm_jax.convert.readers.pickles import Refused
from cm_jax.errors import UserError

# what damaged or hostile bytes can raise in a parser; anything else is our bug and shows as one
DAMAGE = (
  *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, RuntimeError, MemoryError),
  *(struct.error, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def reading(path: str | os.PathLike, what: str, field: str = "input") -> Iterator[None]:
  """Let what goes wrong in the block be said of a file.

  Args:
    path: The file.
    what: It should be a whole one of.
    field: As errors name it.

  Raises:
    UserError: It cannot be read, is refused, or is damaged.

  >>> with reading("x.pt", "state dict"):
  ...   raise ValueError("odd")
  Traceback (most recent call last):
  cm_jax.errors.UserError: input = x.pt: expected a whole state dict (ValueError: odd)
  """
  try:
    yield
  except Refused as refused:
    raise UserError(field, str(path), str(refused)) from None
  except OSError as error:
    raise UserError(field, str(path), f"a file that can be read ({error.strerror or error})") from None
  except DAMAGE as error:
    expected = f"a whole {what} ({type(error).__name__}: {str(error)[:200]})"
    raise UserError(field, str(path), expected) from None
