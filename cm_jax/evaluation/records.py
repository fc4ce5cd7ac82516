"""One record for every measurement, which says what was measured; reports are derived from records alone."""

import collections.abc
import dataclasses
import os
import platform
import subprocess
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.storage import lines
from cm_jax.version import __version__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """A measurement; None where unknown or without meaning.

  Attributes:
    metric: What was measured, such as "fd_digits".
    value: The result.
    n: Samples it was taken over.
    nfe, sigmas, sampler: How they were sampled: network evaluations a sample, physical noise levels, the
      sampler's config.
    average, step, config_sha256: Of which weights: the average's name, the training step, the run's config.
    seed: Of the samples.
    dataset_fingerprint: Of the data the model was trained on.
    reference: What the samples were compared with.
    convention: Whose way of measuring it is, a key of `CONVENTIONS`.
    resize: How images came to the size of the network whose features were compared.
    features_hash: Of that network.
    quantiser: How samples became uint8.
    splits: Parts of the samples that the value is a mean over (Inception score).
    subsets: Drawn parts of the samples that the value is a mean over (KID).
    neighbours: Whose distance makes a sample's ball (precision, recall, density, coverage).
    guidance: Scale of classifier-free guidance.
    dtype: The network computed in.
    matmul_precision: Its float32 products were computed in, one of `PRECISIONS`.
    device, versions, commit: Where it ran and by which code (`provenance`).
    seconds, images_per_second: What the samples cost.
    features: What the network whose features were compared is called.
    reference_hash: Sha256 of a file of statistics, or fingerprint of a data set: what `reference` is.
    samples: Images that were there already and are no model's: what was given.
    choices: All that the metric was free to choose, by the names of a convention's fields.
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
  convention: str | None = None
  resize: str | None = None
  features_hash: str | None = None
  quantiser: str | None = None
  splits: int | None = None
  subsets: int | None = None
  neighbours: int | None = None
  guidance: float | None = None
  dtype: str | None = None
  matmul_precision: str | None = None
  device: str | None = None
  versions: Mapping[str, str] | None = None
  commit: str | None = None
  seconds: float | None = None
  images_per_second: float | None = None
  features: str | None = None
  reference_hash: str | None = None
  samples: str | None = None
  choices: Mapping[str, Any] | None = None


def append(path: epath.PathLike, records: Iterable[Record]) -> None:
  """Add records to a JSONL file: all of them or none; see `lines.append`."""
  lines.append(path, map(dataclasses.asdict, records))


def read(path: epath.PathLike) -> list[Record]:
  """Return the records of a file, oldest first; an unfinished last line counts as not written.

  Raises:
    UserError: No such file, or a line that is no record.
  """
  if not epath.Path(path).exists():
    raise UserError(str(path), "no such file", "a file of records, as `cm_jax evaluate` writes it")
  return [_parse(f"{path}, line {number}", fields) for number, fields in enumerate(lines.read(path), 1)]


def _parse(where: str, fields: dict[str, Any]) -> Record:
  try:
    record = Record(**fields)
  except TypeError as error:
    raise UserError(where, str(error), "one measurement as JSON, with the fields of a Record") from error
  for name, hint in typing.get_type_hints(Record).items():
    if name in fields and not _is_a(fields[name], hint):
      raise UserError(f"{where}: {name}", fields[name], f"{hint}, as a Record has it")
  return record if record.sigmas is None else dataclasses.replace(record, sigmas=tuple(record.sigmas))


def _is_a(value: Any, hint: Any) -> bool:
  """Say whether a value of JSON is what a type hint of a field says."""
  kind, inner = typing.get_origin(hint), typing.get_args(hint)
  if kind in (typing.Union, types.UnionType):
    return any(_is_a(value, one) for one in inner)
  if kind is tuple:
    return isinstance(value, list) and all(_is_a(item, inner[0]) for item in value)
  if kind is collections.abc.Mapping:
    return isinstance(value, dict) and all(_is_a(item, inner[1]) for item in value.values())
  if hint is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  return hint is Any or type(value) is hint


def origin(model: Model) -> dict[str, Any]:
  """Return the fields of a record that say of which weights it is; None where unknown."""
  known = ("average", "step", "config_sha256", "dataset_fingerprint")
  return {key: model.provenance.get(key) for key in known}


def computed_in(model: Model) -> dict[str, Any]:
  """Return the fields of a record that say how precisely the model computed."""
  return {"dtype": model.network.get("dtype"), "matmul_precision": model.matmul_precision}


def provenance() -> dict[str, Any]:
  """Return the fields of a record that say where and by which code it was made: device, versions, commit."""
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
  """Return the git commit of this cm_jax, "+dirty" behind it if files changed; None if it is no checkout."""
  here = os.path.dirname(os.path.abspath(__file__))

  def git(*arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # it only looks
    command = ["git", "-C", here, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
    return run.stdout.strip()

  try:
    if not git("ls-files", os.path.basename(__file__)):  # an environment inside another project's checkout
      return None
    return git("rev-parse", "HEAD") + ("+dirty" if git("status", "-s", "-uno") else "")
  except (OSError, subprocess.SubprocessError):
    return None
