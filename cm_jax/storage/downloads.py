"""Downloads with a pinned sha256: https only, into a cache only its owner can write; they resume."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cm_jax.errors import UserError
from cm_jax.storage import bucket

_CHUNK = 1 << 20


class NoCache(UserError):
  """The cache's folder cannot be made or written: what only saves time goes on without."""


def cache_folder() -> Path:
  """Return the download cache (`CM_JAX_CACHE`, else `~/.cache/cm_jax`), made with mode 0700 if new.

  Raises:
    NoCache: It cannot be made or written.
    UserError: It is in an object store, or others may write to it: nothing in it could be trusted.
  """
  given = os.environ.get("CM_JAX_CACHE") or "~/.cache/cm_jax"
  if bucket.is_bucket(given):  # where nobody can be seen to be the only one who writes
    expected = "a folder of this machine (JAX_COMPILATION_CACHE_DIR takes a bucket, for compiled programs)"
    raise UserError("CM_JAX_CACHE", given, expected)
  folder = Path(given).expanduser()
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
      folder.mkdir(mode=0o700)
    status = folder.stat()
  except OSError as error:
    raise NoCache("CM_JAX_CACHE", str(folder), f"a folder that can be made ({error.strerror})") from None
  if status.st_mode & 0o022 or status.st_uid not in (0, os.getuid()):
    raise UserError("CM_JAX_CACHE", str(folder), f"a folder only you can write: chmod 700 {folder}")
  if not os.access(folder, os.W_OK | os.X_OK):
    raise NoCache("CM_JAX_CACHE", str(folder), "a folder that can be written")
  return folder


def download(
  urls: str | Sequence[str],
  sha256: str,
  *,
  opener: Callable[..., Any] | None = None,
  progress: Callable[[int, int | None], None] | None = None,
  max_bytes: int = 16 << 30,
) -> Path:
  """Return the local path of a file, fetched unless the cache holds it; a broken transfer resumes.

  Args:
    urls: One https URL, or mirrors in order of preference; redirects must stay on https.
    sha256: Hex digest of the content, checked at every call.
    opener: `opener(request, timeout=seconds) -> response`; urllib's by default.
    progress: Called with (bytes so far, total or None); by default writes to a terminal's standard error.
    max_bytes: A longer answer is refused.

  Raises:
    UserError: No mirror delivered the content. The message says where to put the file by hand.
  """
  mirrors = [urls] if isinstance(urls, str) else list(urls)
  if not re.fullmatch("[0-9a-f]{64}", sha256):
    raise UserError("sha256", sha256, "64 hexadecimal digits")
  for url in mirrors:
    if urllib.parse.urlsplit(url).scheme != "https":
      raise UserError("url", url, "an https address")
  path = _place(mirrors[0], sha256)
  reasons = []
  with locked(path):
    if path.exists() and file_sha256(path) == sha256:
      return path
    part = path.with_name(path.name + ".part")
    for url in [
      mirror for mirror in mirrors for _ in range(2)
    ]:  # a second go: what was resumed may be another file's beginning
      try:
        _fetch(url, part, opener or _https_only().open, progress or _show, max_bytes)
      except (OSError, ValueError, http.client.HTTPException) as error:
        reasons.append(f"{url}: {error}")
        continue
      if (found := file_sha256(part)) == sha256:
        part.replace(path)
        return path
      part.unlink()
      reasons.append(f"{url}: sha256 {found}")
  raise UserError(
    "download",
    "; ".join(dict.fromkeys(reasons)),
    f"{mirrors[0]} with sha256 {sha256} (offline: put that file at {path})",
  )


def sha256_of(url: str, *, opener: Callable[..., Any] | None = None, max_bytes: int = 16 << 30) -> str:
  """Return the sha256 of what an https address has now; it is fetched into the cache, where `download` finds
  it.

  Raises:
    UserError: It cannot be fetched.
  """
  part = cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-asked"
  with locked(part):
    part.unlink(missing_ok=True)  # not the beginning of what may be another file by now
    try:
      _fetch(url, part, opener or _https_only().open, _show, max_bytes)
    except (OSError, ValueError, http.client.HTTPException) as error:
      raise UserError("download", f"{url}: {error}", "a file that can be fetched over https") from None
    found = file_sha256(part)
    part.replace(_place(url, found))
  return found


def _place(url: str, sha256: str) -> Path:
  """Return where the cache has what an address gave."""
  name = re.sub(r"[^\w.-]", "_", urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]) or "file"
  return cache_folder() / f"{sha256[:16]}-{name}"


def file_sha256(path: str | os.PathLike) -> str:
  """Return the hex sha256 of a file's content."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """Let one process at a time fill a place in the cache."""
  with open(path.with_name(path.name + ".lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _fetch(
  url: str,
  part: Path,
  opener: Callable[..., Any],
  progress: Callable[[int, int | None], None],
  max_bytes: int,
) -> None:
  done = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
  try:
    response = opener(request, timeout=60)
  except urllib.error.HTTPError as error:
    if error.code == 416:  # nothing after `done`: complete already, or another file; the sha256 decides
      return
    raise
  with response:
    if response.status != 206:
      done = 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with open(part, "ab" if done else "wb") as file:
      while chunk := response.read(_CHUNK):
        done += len(chunk)
        if done > max_bytes:
          raise ValueError(f"longer than {max_bytes} bytes")
        file.write(chunk)
        progress(done, total)
  if total is not None and done < total:
    raise OSError(f"the connection broke off after {done} of {total} bytes")


def _show(done: int, total: int | None) -> None:
  if sys.stderr.isatty():
    print(
      f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"\r{done / 1e6:.0f} MB",
      end="",
      file=sys.stderr,
      flush=True,
    )


def _https_only() -> urllib.request.OpenerDirector:
  class Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, new_url):
      if urllib.parse.urlsplit(new_url).scheme != "https":
        raise urllib.error.URLError(f"redirected to {new_url}, which is not https")
      return super().redirect_request(request, response, code, message, headers, new_url)

  return urllib.request.build_opener(Redirect)
