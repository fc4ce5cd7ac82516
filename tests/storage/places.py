"""Where storage is tested: on the disk, and in an object store in memory, `memory://`, as buckets are."""

import contextlib
import fnmatch
import io
import resource
import signal

from etils import epath

STORED: dict[str, bytes] = {}  # objects by their address
WRITES: list[str] = []  # addresses in the order in which their objects appeared


class _Upload(io.BytesIO):
  """An object that is there once it is closed, as on a bucket."""

  def __init__(self, address: str):
    super().__init__()
    self.address = address

  def close(self) -> None:
    if not self.closed:
      STORED[self.address] = self.getvalue()
      WRITES.append(self.address)
    super().close()


@epath.register_path_cls("memory://")
class MemoryPath(epath.Path):
  """An object or a prefix: there are no folders, and nothing can be renamed or locked."""

  def __str__(self) -> str:
    return super().__str__().replace("memory:/", "memory://", 1)

  def __fspath__(self) -> str:
    return str(self)

  def exists(self) -> bool:
    return str(self) in STORED or self.is_dir()

  def is_dir(self) -> bool:
    return any(name.startswith(f"{self}/") for name in STORED)

  def iterdir(self):
    below = {name.removeprefix(f"{self}/").split("/")[0] for name in STORED if name.startswith(f"{self}/")}
    return iter([self / name for name in sorted(below)])

  def glob(self, pattern: str):
    return (path for path in self.iterdir() if fnmatch.fnmatch(path.name, pattern))

  def mkdir(self, mode=None, parents=False, exist_ok=False) -> None:
    pass

  def open(self, mode="r", encoding=None, errors=None, **kwargs):
    if mode == "wb":
      return _Upload(str(self))
    if str(self) not in STORED:
      raise FileNotFoundError(2, "No such object", str(self))
    content = io.BytesIO(STORED[str(self)])
    return content if mode == "rb" else io.TextIOWrapper(content, "utf-8")

  def unlink(self, missing_ok: bool = False) -> None:
    STORED.pop(str(self), None)

  def rmtree(self, missing_ok: bool = False) -> None:
    for name in [name for name in STORED if name.startswith(f"{self}/")]:
      del STORED[name]


def names(folder) -> list[str]:
  """Return what lies below a place, hidden or not, files alone."""
  found = [(entry, entry.is_dir()) for entry in folder.iterdir()] if folder.exists() else []
  below = [f"{entry.name}/{name}" for entry, is_dir in found if is_dir for name in names(entry)]
  return sorted([entry.name for entry, is_dir in found if not is_dir] + below)


@contextlib.contextmanager
def disk_of(size: int):
  """Let no file grow beyond a size: writing fails as it does on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def no_room(*_, **__):
  """Fail as a full disk does."""
  raise OSError(28, "No space left on device")
