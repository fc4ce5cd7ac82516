"""One record for every measurement, with everything needed to say what was measured; reports are derived from records alone."""

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from cm_jax import __version__
from cm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """A measurement; None where unknown or without meaning.

  Attributes:
    metric: What was measured, such as "fd_digits".
    value: The result.
    n: Samples it was taken over.
    nfe, sigmas, sampler: How they were sampled: network evaluations a sample, physical noise levels, the sampler's config.
    average, step, config_sha256: Of which weights: the average's name, the training step, the run's config.
    seed: Of the samples.
    dataset_fingerprint: Of the data the model was trained on.
    reference: What the samples were compared with.
    features_hash: Of the network whose features were compared.
    quantiser: How samples became uint8.
    dtype: The network computed in.
    device, versions, commit: Where it ran and by which code (`provenance`).
    seconds, images_per_second: What the samples cost.
  """

  metric: str
  value: float | None
  n: int | None = None
  nfe: int | None = None
  sigmas: tuple[float, ...] | None = None
  average: str | None = None
  step: int | None = None
  seed: int | None = None
  sampler: Mapping[str, Any] | str | None = None
  config_sha256: str | None = None
  dataset_fingerprint: str | None = None
  reference: str | None = None
  features_hash: str | None = None
  quantiser: str | None = None
  dtype: str | None = None
  device: str | None = None
  versions: Mapping[str, str] | None = None
  commit: str | None = None
  seconds: float | None = None
  images_per_second: float | None = None


def append(path: str | os.PathLike, records: Iterable[Record]) -> None:
  """Add records to a JSONL file: all of them or none, on the disk when it returns.

  A last line that a killed process left unfinished is removed first.

  Raises:
    ValueError: A value that JSON cannot hold, such as NaN; nothing is written.
  """
  lines = "".join(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n" for record in records).encode()
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
  with os.fdopen(descriptor, "r+b", buffering=0) as file:
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.write(lines)
    os.fsync(descriptor)


def read(path: str | os.PathLike) -> list[Record]:
  """Return the records of a file, oldest first; an unfinished last line counts as not written.

  Raises:
    UserError: No such file, or a line that is no record.
  """
  try:
    with open(path, encoding="utf-8") as file:
      lines = file.read().split("\n")[:-1]
  except OSError as error:
    raise UserError(str(path), error.strerror, "a file of records, as `cm_jax evaluate` writes it") from error
  return [_parse(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _parse(where: str, line: str) -> Record:
  try:
    fields = json.loads(line)
    record = Record(**fields)
  except (ValueError, TypeError) as error:
    raise UserError(where, str(error), "one measurement as JSON, with the fields of a Record") from error
  return record if record.sigmas is None else dataclasses.replace(record, sigmas=tuple(record.sigmas))


def provenance() -> dict[str, Any]:
  """Return the fields of a record that say where it was measured and by which code: device, versions, commit."""
  import importlib.metadata

  import jax

  versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
  devices = jax.devices()
  kind = devices[0].device_kind
  return {
    "device": kind if len(devices) == 1 else f"{len(devices)} x {kind}",
    "versions": {"python": platform.python_version(), **versions, "cm_jax": __version__},
    "commit": commit(),
  }


def commit() -> str | None:
  """Return the git commit of the cm_jax that is running, "+dirty" behind it if files were changed since; None if it is no checkout."""
  here = os.path.dirname(os.path.abspath(__file__))

  def git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", here, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", os.path.basename(__file__))  # else an environment inside another project's checkout
    return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.SubprocessError):
    return None
