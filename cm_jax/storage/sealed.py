"""Parts of a result that is not whole yet, each with its sha256: a damaged one is made anew."""

import hashlib
from collections.abc import Iterable

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import whole


def digest(parts: Iterable[bytes]) -> bytes:
  """Return the sha256 of parts, one after the other."""
  found = hashlib.sha256()
  for part in parts:
    found.update(part)
  return found.digest()


def sealed(content: bytes) -> bytes:
  """Return the content of a shard, with what tells whether it is still what was written."""
  return digest([content]) + content


def opened(path: epath.Path) -> bytes:
  """Return the content of a shard.

  Raises:
    OSError: It cannot be read, or is no regular file.
    UserError: It is not as it was written.
  """
  stored = whole.read(path)
  size = hashlib.sha256().digest_size
  if stored[:size] != digest([stored[size:]]):
    raise UserError(str(path), "damaged", "a shard as it was written; the same command draws it again")
  return stored[size:]
