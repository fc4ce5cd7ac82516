"""Folders of this machine that a process has for itself alone; what a killed one left the next removes."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from cm_jax.storage.holder import machine, started


def private_folder(name: str) -> Path:
  """Make a folder in TMPDIR, and remove those of that name whose process is gone, as can be seen from here.

  Args:
    name: What it begins with.

  Raises:
    OSError: TMPDIR cannot be written.
  """
  ours = f"{name}-{_short(machine())}-"
  for left in Path(tempfile.gettempdir()).glob(f"{ours}*"):
    number, began, *_ = [*left.name.removeprefix(ours).split("-"), "", ""]
    if number.isdecimal() and began and _short(started(int(number))) != began:
      shutil.rmtree(left, ignore_errors=True)
  me = os.getpid()
  return Path(tempfile.mkdtemp(prefix=f"{ours}{me}-{_short(started(me))}-"))


def _short(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:12]
