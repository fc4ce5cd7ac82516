"""Files of an object store that are read from again and again, as a zip of images: fetched once.

A copy lies in the cache, named by the address and the version of its object: another version is another file.
What is no longer wanted stays in `objects` of the cache's folder until somebody removes it.
"""

import hashlib
from pathlib import Path

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bucket, whole
from cm_jax.storage.downloads import cache_folder


def local(path: epath.PathLike, field: str = "path") -> Path:
  """Return a file of this machine with the content of a file: itself, or a copy of what is in a bucket.

  Raises:
    UserError: Names `field`: there is no such object, or it cannot be fetched; the disk is full.
  """
  if not bucket.is_bucket(path):
    return Path(path)
  store, address = bucket.filesystem(path), str(path)
  try:
    about = bucket.patiently(path, lambda: store.info(address))
    if about["type"] != "file":
      raise FileNotFoundError(address)
  except FileNotFoundError:
    raise UserError(field, address, "a file that is there") from None
  except OSError as error:
    raise UserError(field, address, f"a file that can be read ({bucket.said(error)})") from error
  version = next((about[key] for key in ("generation", "ETag", "etag") if key in about), about.get("mtime"))
  name = hashlib.sha256(f"{address}\0{version}\0{about['size']}".encode()).hexdigest()[:24]
  copy = cache_folder() / "objects" / f"{name}-{address.rsplit('/', 1)[-1]}"
  if not copy.exists():
    whole.check_room(field, copy, about["size"])
    with whole.writing(copy) as temporary:
      bucket.patiently(path, lambda: store.get_file(address, str(temporary)))
      if temporary.stat().st_size != about["size"]:
        raise OSError(f"{temporary.stat().st_size} of {about['size']} bytes of {address} came")
  return copy
