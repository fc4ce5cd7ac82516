"""Object stores, `gs://` and `s3://`: made ready for etils, asked within bounds of time, what they say told
in one line.

They are reached by fsspec (gcsfs, s3fs: the extras `[gcs]` and `[s3]`), never by TensorFlow, which etils
would take where it is installed. Credentials and an endpoint are found as those libraries find them.
"""

import contextlib
import errno
import functools
import importlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from cm_jax.errors import UserError

DEADLINE = 20.0  # seconds for the first answer, before any work
PATIENCE = 120.0  # seconds that a store may be away in the middle of a run
_LONGEST = 15.0  # seconds between two tries
# Listings are never remembered: other processes write, too. One try is short; who can wait tries again.
_SHORT: Mapping[str, Any] = {
  "connect_timeout": 5,
  "read_timeout": 30,
  "retries": {"total_max_attempts": 2, "mode": "standard"},
}
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
  "s3": {"use_listings_cache": False, "config_kwargs": _SHORT},
  "gs": {"use_listings_cache": False, "timeout": 30},
}
_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # what reaches it, the extra that brings that
_CREDENTIALS = {
  "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role",
  "gs": "`gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS, or the machine's account",
}
_NAMED = re.compile(rf"(?:[\w./\[\]%:+-]*:)?((?:{'|'.join(_PACKAGES)})://.*)", re.DOTALL)
# Whose errors are about the store, and no errors of ours.
_THEIRS = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "requests", "urllib3")
_NUMBERS = {  # of errors that are raised without
  FileExistsError: errno.EEXIST,
  FileNotFoundError: errno.ENOENT,
  PermissionError: errno.EACCES,
}
Answer = TypeVar("Answer")


def is_bucket(path: object) -> bool:
  """Say whether a path is in an object store.

  >>> is_bucket("s3://bucket/run"), is_bucket("runs/s3")
  (True, False)
  """
  return str(path).partition("://")[0] in _PACKAGES and "://" in str(path)


def named_in(text: str) -> str | None:
  """Return the path in an object store that a text is, or names behind words as `zip:s3://b/x.zip` does.

  >>> named_in("zip:s3://b/x.zip"), named_in("tfds:mnist:train[:9%]:gs://b/d"), named_in("digits:train")
  ('s3://b/x.zip', 'gs://b/d', None)
  """
  found = _NAMED.fullmatch(text)
  return found[1] if found else None


def filesystem(path: object) -> Any:
  """Return fsspec's file system of a path in an object store.

  Raises:
    UserError: What reaches it is not installed.
  """
  import fsspec

  scheme = str(path).partition("://")[0]
  package, extra = _PACKAGES[scheme]
  try:
    _prepare(scheme)
    return fsspec.filesystem(scheme)
  except ImportError as error:
    expected = f'{package}, which reaches {scheme}://: pip install "cm_jax[{extra}]" ({error})'
    raise UserError("path", str(path), expected) from None


@functools.cache
def _prepare(scheme: str) -> None:
  # gcsfs would ask another service what kind of bucket it is, minutes long where that does not answer.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  importlib.import_module(_PACKAGES[scheme][0])
  import fsspec

  os.environ["EPATH_USE_TF"] = "false"
  known = fsspec.config.conf.setdefault(scheme, {})
  for key, value in _SETTINGS[scheme].items():  # what the user's own settings of fsspec say counts
    known.setdefault(key, value)
  for name in ("gcsfs", "s3fs", "google.auth"):  # what they print is said by who asked
    logging.getLogger(name).setLevel(logging.CRITICAL)


def check(field: str, path: object) -> None:
  """Check that the bucket of a path is there, answers, and may be listed below that path.

  Raises:
    UserError: Names `field`; within `DEADLINE` seconds.
  """
  try:
    store = filesystem(path)
  except UserError as error:
    raise UserError(field, str(path), error.expected) from None
  scheme, _, rest = str(path).partition("://")
  name, _, key = rest.partition("/")
  if not name:
    raise UserError(field, str(path), f"{scheme}://BUCKET/NAME")

  def ask() -> None:
    if scheme == "s3":
      store.call_s3("list_objects_v2", Bucket=name, Prefix=key, MaxKeys=1)
    else:
      store.call("GET", "b/{}/o", name, prefix=key, maxResults=1, json_out=True)

  if (failed := _answer(ask)) is not None:
    raise UserError(field, str(path), _expected(failed, scheme, name)) from None


def check_writable(field: str, path: object) -> None:
  """Check that objects can be made beside a path, by making one.

  Raises:
    UserError: Names `field`; within `DEADLINE` seconds.
  """
  check(field, path)
  store, probe = filesystem(path), f"{path}.{os.urandom(6).hex()}.tmp"

  def try_it() -> None:
    store.pipe_file(probe, b"")
    store.rm_file(probe)

  if (failed := _answer(try_it)) is not None:
    expected = f"a place that these credentials can write, and delete from ({said(failed)})"
    raise UserError(field, str(path), expected) from None


def _answer(ask: Callable[[], object]) -> BaseException | None:
  """Return what went wrong in asking; a `TimeoutError` where there is no answer."""
  failed: list[BaseException] = []

  def run() -> None:
    try:
      ask()
    except Exception as error:  # of any library, about anything: it is told
      failed.append(error)

  asking = threading.Thread(target=run, name="cm_jax-bucket", daemon=True)
  asking.start()
  asking.join(DEADLINE)
  if asking.is_alive():
    return TimeoutError(f"no answer in {DEADLINE:.0f} s")
  return failed[0] if failed else None


def _expected(error: BaseException, scheme: str, name: str) -> str:
  if "Credentials" in type(error).__name__:
    return f"credentials for it: {_CREDENTIALS[scheme]} ({said(error)})"
  if isinstance(error, FileNotFoundError):
    return f"a bucket that exists, or its name spelt right: there is no {scheme}://{name}"
  if isinstance(error, PermissionError):
    return f"a bucket that these credentials may list and read ({said(error)})"
  return f"an object store that answers ({said(error)})"


def said(error: BaseException) -> str:
  """Return what an error says, on one line.

  >>> said(OSError(5, "Input/output error"))
  'Input/output error'
  """
  text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
  return " ".join((text or type(error).__name__).split())[:200]


def is_theirs(error: BaseException) -> bool:
  """Say whether an error comes from the libraries that reach object stores."""
  return type(error).__module__.partition(".")[0] in _THEIRS


@contextlib.contextmanager
def told(path: object) -> Iterator[None]:
  """Turn what those libraries raise about a path into an `OSError` that names it and says what is wrong.

  >>> with told("s3://b/x"):
  ...   raise PermissionError("Access Denied")
  Traceback (most recent call last):
  PermissionError: [Errno 13] Access Denied: 's3://b/x'
  """
  try:
    yield
  except OSError as error:
    if error.filename is not None or not is_bucket(path):
      raise
    number = error.errno or _NUMBERS.get(type(error), errno.EIO)
    raise OSError(number, said(error), str(path)) from error
  except Exception as error:
    if not is_theirs(error):
      raise
    raise OSError(errno.EIO, said(error), str(path)) from error


def patiently(path: object, act: Callable[[], Answer]) -> Answer:
  """Return what `act` returns, which is tried again for `PATIENCE` seconds while the store is away.

  Raises:
    OSError: It stays away, or says no.
  """
  end, wait = time.monotonic() + PATIENCE, 1.0
  while True:
    try:
      with told(path):
        return act()
    except (FileNotFoundError, PermissionError):
      raise
    except OSError as error:
      is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # the disk here
      if is_full or not is_bucket(path) or time.monotonic() + wait > end:
        raise
    time.sleep(wait)
    wait = min(2 * wait, _LONGEST)


def create(path: object, content: bytes) -> bool:
  """Make a small object if there is none of its name; of all who try at once, one does.

  Raises:
    OSError: It cannot be written.
  """
  try:
    with told(path):
      filesystem(path).pipe_file(str(path), content, mode="create")
  except FileExistsError:
    return False
  return True
