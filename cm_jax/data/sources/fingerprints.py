"""What identifies a data set: a hash of its content, computed once for the files as they are."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cm_jax.errors import UserError
from cm_jax.storage import whole
from cm_jax.storage.downloads import cache_folder


def fingerprint(preprocessing: str, blobs: Iterable[Any], labels: np.ndarray) -> str:
  """Return what identifies a data set: sha256 (hex) over preprocessing, images and labels in order.

  Args:
    preprocessing: What is done to the images; with their shape if `blobs` does not tell it.
    blobs: Of every image its file's bytes or its pixels.
    labels: int32 [N].

  >>> fingerprint("none", [b"one", b"two"], np.array([0, 1]))[:8]
  '63cc20e8'
  """
  digest = hashlib.sha256(preprocessing.encode() + b"\0")
  count = 0
  for blob in blobs:
    digest.update(hashlib.sha256(blob).digest())
    count += 1
  digest.update(f"{count}\0".encode() + np.ascontiguousarray(labels, "<i4").tobytes())
  return digest.hexdigest()


def remembered(stamp: Iterable[str], compute: Callable[[], str]) -> str:
  """Return compute(), or what it returned for the same stamp before, from the cache folder.

  Args:
    stamp: Lines that change when the content does (`file_stamp`).
    compute: Reads the content.
  """
  digest = hashlib.sha256(b"1\0")  # the number of the fingerprint's definition
  for line in stamp:
    digest.update(line.encode())
  try:
    folder = cache_folder() / "fingerprints"
    folder.mkdir(exist_ok=True)
  except (UserError, OSError):  # no cache is no reason to stop
    return compute()
  file = folder / digest.hexdigest()
  if file.is_file():
    return file.read_text()
  value = compute()
  with contextlib.suppress(UserError):  # nor is one that is full
    whole.write(file, value)
  return value
