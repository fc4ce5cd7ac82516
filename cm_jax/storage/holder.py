"""Who holds a place: a process, told from others of its number, its machine and its job."""

import dataclasses
import functools
import os
import secrets
import socket
import subprocess
import time
from pathlib import Path

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bounded

_BYTES = 4096  # of a lock's file, at most
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SKYPILOT_TASK_ID", "AWS_BATCH_JOB_ID")  # kept by a requeue


@dataclasses.dataclass(frozen=True)
class Holder:
  """Who holds a place.

  Attributes:
    host: Its machine's name.
    machine: What tells whether its process can be seen from here: the boot, and the space of process numbers.
    pid, started: Its process, and when that began: numbers are used again.
    job, restart: Its job, and how often that was requeued; "" for none.
    token: Of this lock alone.
    at: When it was taken or, elsewhere than on a local file system, refreshed: seconds since 1970.
  """

  host: str = ""
  machine: str = ""
  pid: int = 0
  started: str = ""
  job: str = ""
  restart: int = 0
  token: str = ""
  at: float = 0.0

  @classmethod
  def this(cls) -> "Holder":
    """Return this process as a holder."""
    job = next((f"{name} {os.environ[name]}" for name in JOBS if os.environ.get(name)), "")
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    restart = int(count) if count.isdigit() else 0
    pid, host = os.getpid(), socket.gethostname()
    return cls(host, machine(), pid, started(pid), job, restart, secrets.token_hex(8), time.time())

  @classmethod
  def read(cls, path: epath.PathLike) -> "Holder | None":
    """Return whom a lock's file names, None if there is no file; of one that is damaged, or being written,
    nobody.

    Raises:
      OSError: The file cannot be read.
    """
    try:
      fields = bounded.parse_object(bounded.content(path, _BYTES), str(path), "a lock")
      return cls(**{name: type(getattr(cls, name))(value) for name, value in fields.items()})
    except FileNotFoundError:
      return None
    except (UserError, ValueError, TypeError, AttributeError):
      return cls()

  def __str__(self) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at))
    return (
      f"process {self.pid} on {self.host}, since {since}" if self.pid else "a process that does not say who"
    )


@functools.cache
def machine() -> str:
  """Return what tells whether a process can be seen from here: the boot, and the space of process numbers."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # a container has process numbers of its own
  except OSError:
    return socket.gethostname()


def started(pid: int) -> str:
  """Return when a process of this machine began, in whatever unit; "" if there is none."""
  try:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
  except OSError:
    if Path("/proc/self/stat").exists():
      return ""
  shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
  return shown.stdout.strip()
