"""How the processes of a job find each other: one decision, from the environment and a metadata server.

| where | what says so |
|---|---|
| set by hand, or by flags | JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID |
| Slurm, inside srun | SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID; JAX asks it for the first |
| TPU on GKE | TPU_PROCESS_ADDRESSES or TPU_WORKER_HOSTNAMES, and TPU_WORKER_ID |
| TPU on Compute Engine | the metadata server: worker-network-endpoints, agent-worker-number |
| several slices of either | MEGASCALE_COORDINATOR_ADDRESS, MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID |
| an indexed Job of Kubernetes | JOB_COMPLETION_INDEX; JAX asks the Job itself (jax[k8s]) |
| anything else | one process |
"""

import dataclasses
import importlib.util
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from cm_jax.errors import UserError
from cm_jax.training import lost, peers

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
JOIN_TIMEOUT = "CM_JAX_JOIN_TIMEOUT"  # seconds to wait for the others at the start
_TPU_PORT = 8482  # where JAX's coordinator listens on TPU hosts
_GRACE = 60  # seconds after which JAX gives up, later than this package does
_HEARTBEAT = 100  # seconds that JAX waits by itself for a sign of life
_ATTEMPTS = 3  # to reach the metadata server, a few seconds each
Metadata = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Job:
  """The processes of a job, as one of them sees it.

  Attributes:
    where: What they were found by, for people.
    processes, process: How many there are, and which this is; 0 where only JAX can ask for them.
    coordinator: HOST:PORT of the first; "" where JAX asks for it.
  """

  where: str
  processes: int = 1
  process: int = 0
  coordinator: str = ""

  def __str__(self) -> str:
    if self.processes == 1:
      return f"{self.where}: one process"
    count = (
      f"process {self.process} of {self.processes}" if self.processes else "as many processes as it says"
    )
    return f"{self.where}: {count}" + (f", coordinator {self.coordinator}" if self.coordinator else "")


def find(environment: Mapping[str, str], metadata: Metadata = lambda key: None) -> Job:
  """Decide which job this process belongs to.

  Args:
    environment: Such as os.environ.
    metadata: Returns an attribute of this machine from Google's metadata server, None where it has none.

  Raises:
    UserError: What is set cannot be, is set in part, or says two things.

  >>> print(find({"TPU_WORKER_HOSTNAMES": "t-0.sub,t-1.sub", "TPU_WORKER_ID": "1"}))
  TPU on GKE: process 1 of 2, coordinator t-0.sub:8482
  >>> print(find({}))
  no job: one process
  """
  slurm = _slurm(environment)
  given = {name: environment[name] for name in EXPLICIT if environment.get(name)}
  if given:
    return _explicit(given, environment, slurm)
  if slurm is not None:
    return slurm
  names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
  if names:
    workers = [_host(name) for name in names.split(",")]
    worker = _number(environment, "TPU_WORKER_ID", len(workers) - 1) if len(workers) > 1 else 0
    return _slices("TPU on GKE", workers, worker, environment, lambda key: None)
  endpoints = metadata("worker-network-endpoints")
  if endpoints:
    workers = [_endpoint(text) for text in endpoints.strip().split(",")]
    said = {"agent-worker-number": (metadata("agent-worker-number") or "0").strip()}
    worker = _number(said, "agent-worker-number", len(workers) - 1)
    return _slices("TPU on Compute Engine", workers, worker, environment, metadata)
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    if importlib.util.find_spec("kubernetes") is None:
      expected = "set, with JAX_COORDINATOR_ADDRESS where it is not 1; or jax[k8s] installed, to ask the Job"
      raise UserError("JAX_NUM_PROCESSES", "", expected)
    return Job("an indexed Job of Kubernetes", 0)
  if _count(environment, "SLURM_NTASKS") > 1 and "SLURM_PROCID" in environment:
    _say(f"SLURM_NTASKS = {environment['SLURM_NTASKS']}, but not inside srun: this is one process")
  return Job("no job")


def join(job: Job, seconds: int = 300, silence: float = 60.0) -> None:
  """Join the other processes; on a single one do nothing. Must run before anything touches a device.

  Args:
    job: From `find`.
    seconds: How long to wait for the others.
    silence: Seconds without a sign of life after which `peers` takes another for dead: JAX does so later.

  Raises:
    UserError: They did not come.
  """
  if job.processes == 1:
    return
  import jax

  _say(str(job))
  expected = (
    f"all processes started within {seconds} s of each other, and the first reachable from this one "
    f"({JOIN_TIMEOUT})"
  )

  def give_up() -> None:  # JAX itself would end the process with a stack trace
    _say(str(UserError("processes", str(job), expected)))
    sys.stderr.flush()
    os._exit(UserError.status)

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  known: dict[str, Any] = (
    {"coordinator_address": job.coordinator, "num_processes": job.processes, "process_id": job.process}
    if job.coordinator
    else {}
  )
  try:
    while job.coordinator and not _has_address(job.coordinator.rpartition(":")[0]):  # its pod may start later
      time.sleep(1)
    with lost.told_by(peers.end_without_first):
      jax.distributed.initialize(
        **known,
        initialization_timeout=seconds + _GRACE,
        heartbeat_timeout_seconds=max(_HEARTBEAT, int(silence) + _GRACE),
      )
  except (RuntimeError, ValueError, OSError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError("processes", str(job), f"{expected}: {reason}") from None
  finally:
    timer.cancel()


def seconds_to_join(environment: Mapping[str, str]) -> int:
  """Return how long to wait for the others: CM_JAX_JOIN_TIMEOUT, 300 without.

  Raises:
    UserError: It is no positive number.
  """
  return _number(environment, JOIN_TIMEOUT, None, low=1) if environment.get(JOIN_TIMEOUT) else 300


def tpu_metadata() -> Metadata:
  """Return what asks Google's metadata server, on a machine that JAX takes for a TPU host; else nothing."""
  # JAX sets the variable where it finds no TPU; GKE sets it, because there the names are in the environment.
  if "TPU_SKIP_MDS_QUERY" in os.environ or importlib.util.find_spec("libtpu") is None:
    return lambda key: None
  return ask_metadata


def ask_metadata(key: str) -> str | None:
  """Return an attribute of this machine from the metadata server; None if it has none, or nobody answers."""
  server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
  request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
  for _ in range(_ATTEMPTS):
    try:
      with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read(1 << 20).decode())
    except urllib.error.HTTPError as error:
      if error.code == 404:
        return None
    except (OSError, UnicodeDecodeError):
      continue
  return None


def _say(line: str) -> None:
  """Tell on standard error: `notice` would ask which process this is, which starts the devices."""
  print(f"cm_jax: {line}", file=sys.stderr)


def _has_address(host: str) -> bool:
  try:
    socket.getaddrinfo(host.strip("[]"), None)
  except OSError:
    return False
  return True


def _explicit(given: Mapping[str, str], environment: Mapping[str, str], slurm: Job | None) -> Job:
  """Take what is set by hand; in an indexed Job of Kubernetes the index may be the process."""
  index = environment.get("JOB_COMPLETION_INDEX")
  if "JAX_PROCESS_ID" not in given and index:
    given = {**given, "JAX_PROCESS_ID": index}
  if given.get("JAX_NUM_PROCESSES") == "1" and given.get("JAX_PROCESS_ID", "0") == "0":
    return Job("JAX_NUM_PROCESSES")
  missing = [name for name in EXPLICIT if name not in given]
  if missing:
    raise UserError(
      ", ".join(missing), "", f"set, as {', '.join(name for name in EXPLICIT if name in given)} is"
    )
  processes = _number(given, "JAX_NUM_PROCESSES", None, low=1)
  process = _number(given, "JAX_PROCESS_ID", processes - 1)
  if not re.fullmatch(r"\S+:\d+", given["JAX_COORDINATOR_ADDRESS"]):
    expected = "HOST:PORT of the process whose JAX_PROCESS_ID is 0"
    raise UserError("JAX_COORDINATOR_ADDRESS", given["JAX_COORDINATOR_ADDRESS"], expected)
  for name, ours, theirs in (
    ("JAX_NUM_PROCESSES", processes, slurm and slurm.processes),
    ("JAX_PROCESS_ID", process, slurm and slurm.process),
  ):
    if slurm is not None and ours != theirs:
      raise UserError(name, ours, f"{theirs}, as Slurm has it, or not set inside srun")
  return Job("set by hand", processes, process, given["JAX_COORDINATOR_ADDRESS"])


def _slurm(environment: Mapping[str, str]) -> Job | None:
  tasks = _count(environment, "SLURM_NTASKS")
  if tasks < 2 or "SLURM_STEP_NODELIST" not in environment:
    return None
  return Job("Slurm", tasks, _number(environment, "SLURM_PROCID", tasks - 1))


def _slices(
  where: str, workers: list[str], worker: int, environment: Mapping[str, str], metadata: Metadata
) -> Job:
  """Number the workers of all slices, as JAX does: slice by slice."""
  said = {**_pairs(metadata("tpu-env") or ""), **environment}
  first, slices, which = workers[0], 1, 0
  if said.get("MEGASCALE_NUM_SLICES"):
    slices = _number(said, "MEGASCALE_NUM_SLICES", None, low=1)
  if slices > 1:
    which, where = _number(said, "MEGASCALE_SLICE_ID", slices - 1), f"{where}, {slices} slices"
    if not said.get("MEGASCALE_COORDINATOR_ADDRESS"):
      raise UserError(
        "MEGASCALE_COORDINATOR_ADDRESS", "", "the first host of slice 0, as MEGASCALE_NUM_SLICES is set"
      )
    first = _host(said["MEGASCALE_COORDINATOR_ADDRESS"])
  return Job(where, len(workers) * slices, which * len(workers) + worker, f"{first}:{_TPU_PORT}")


def _pairs(text: str) -> dict[str, str]:
  """Read "KEY: 'value'" lines, the metadata server's tpu-env."""
  split = (line.partition(":") for line in text.splitlines())
  return {key.strip(): value.strip().strip("'\"") for key, colon, value in split if colon}


def _endpoint(text: str) -> str:
  """Return the host of an entry of worker-network-endpoints: a name, or name:id:address."""
  parts = text.strip().split(":")
  if len(parts) not in (1, 3) or not parts[-1]:
    raise UserError("worker-network-endpoints", text, "HOST or NAME:ID:ADDRESS of each worker")
  return parts[-1]


def _host(text: str) -> str:
  return text.strip().rpartition(":")[0] or text.strip()


def _count(environment: Mapping[str, str], name: str) -> int:
  text = environment.get(name, "")
  return int(text) if text.isdecimal() else 0


def _number(environment: Mapping[str, str], name: str, high: int | None, low: int = 0) -> int:
  text = environment.get(name, "")
  value = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
  if value < low or (high is not None and value > high):
    raise UserError(name, text, f"an integer, {low} " + ("or more" if high is None else f"to {high}"))
  return value
