"""What `cm_jax benchmark --what` names: each takes flags and a subject and returns rows and their columns."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from absl import flags

from cm_jax.benchmark.cases import Workload
from cm_jax.benchmark.plan.accelerators import accelerator
from cm_jax.benchmark.records import Column
from cm_jax.cli.flags import parse_sigmas
from cm_jax.errors import UserError
from cm_jax.notices import notice

if TYPE_CHECKING:
  from cm_jax.benchmark.subjects import Subject

Measured: TypeAlias = tuple[list[dict[str, Any]], dict[str, Column]]


def whole_numbers(values: flags.FlagValues, name: str) -> list[int]:
  """Return a list flag as positive whole numbers.

  Raises:
    UserError: It is something else.
  """
  given: list[str] = values[name].value or []
  try:
    numbers = [int(part) for part in given]
  except ValueError:
    numbers = [0]
  if any(number < 1 for number in numbers):
    raise UserError(name, ",".join(given), "positive whole numbers, such as 1,8,64")
  return numbers


def batch_size(values: flags.FlagValues, subject: "Subject") -> int:
  """Return the one batch size of what is no sweep."""
  return (whole_numbers(values, "batch") or [subject.batch_size])[0]


def _in_types(values: flags.FlagValues, subject: "Subject") -> "list[Subject]":
  return [subject.with_network(dtype=dtype) for dtype in values.dtype] or [subject]


def _beside(values: flags.FlagValues) -> Callable[..., dict[str, Callable[[], None]]]:
  if values.beside is None:
    return lambda subject, batch, sampler: {}
  from importlib.util import find_spec

  from cm_jax.benchmark import beside_torch

  if find_spec("torch") is None:
    raise UserError("beside", values.beside, 'PyTorch: pip install "cm_jax[torch]"')
  return lambda subject, batch, sampler: beside_torch.programs(subject, batch, sampler, values.compiled)


def _swept(values: flags.FlagValues, variants: Sequence[Any], dtype: str, precision: str) -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import throughput

  peak = None if values.peak is None else accelerator(values.peak).rate(dtype, precision)
  count = 1 + sum(1 + len(variant.beside) for variant in variants)
  with tqdm(total=count * (values.rounds + 1), disable=not sys.stderr.isatty()) as bar:
    return throughput.measure(variants, values.rounds, peak, bar.update), throughput.COLUMNS


def _sampling(values: flags.FlagValues, subject: "Subject") -> Measured:
  from cm_jax.benchmark import sweep

  batches = whole_numbers(values, "batch") or [1, 8, 64]
  nfes, devices = whole_numbers(values, "nfe"), whole_numbers(values, "devices")
  variants = [
    variant
    for one in _in_types(values, subject)
    for variant in sweep.sampling(one, batches, nfes, devices, values.seed, _beside(values))
  ]
  return _swept(values, variants, *_computes_in(values, subject))


def _train(values: flags.FlagValues, subject: "Subject") -> Measured:
  from cm_jax.benchmark import sweep

  batches, devices = whole_numbers(values, "batch") or [subject.batch_size], whole_numbers(values, "devices")
  variants = [
    variant
    for one in _in_types(values, subject)
    for variant in sweep.training(one, batches, devices, values.seed, _beside(values))
  ]
  return _swept(values, variants, *_computes_in(values, subject))


def _computes_in(values: flags.FlagValues, subject: "Subject") -> tuple[str, str]:
  dtypes = values.dtype or [subject.model.network.get("dtype", "float32")]
  if values.peak is not None and len(dtypes) > 1:
    raise UserError("peak", values.peak, "one --dtype beside it: a peak is of one")
  return dtypes[0], subject.model.matmul_precision


def _loop(values: flags.FlagValues, subject: "Subject") -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import loop

  config = _in_types(values, subject)[0].config.copy_and_resolve_references()
  config.batch_size = batch_size(values, subject)
  with tqdm(total=values.rounds, disable=not sys.stderr.isatty()) as bar:
    return loop.measure(config, values.rounds, progress=bar.update), loop.COLUMNS


def _compile(values: flags.FlagValues, subject: "Subject") -> Measured:
  from cm_jax.benchmark import compiling, sweep

  programs = [
    ({"program": name, "dtype": one.model.network.get("dtype", "float32"), "batch": batch}, lower)
    for one in _in_types(values, subject)
    for batch in whole_numbers(values, "batch") or [subject.batch_size]
    for name, lower in sweep.lowerings(one, batch, whole_numbers(values, "nfe"))
  ]
  return compiling.measure(programs), compiling.COLUMNS


def _startup(values: flags.FlagValues, subject: "Subject") -> Measured:
  from importlib.util import find_spec

  from tqdm import tqdm

  from cm_jax.benchmark import startup

  one, blobs = _in_types(values, subject)[0], find_spec("flatbuffers") is not None
  if not blobs:
    notice("startup: no jax.export blob: pip install flatbuffers, which it is read with")
  batch, nfes = batch_size(values, subject), whole_numbers(values, "nfe")
  with tqdm(total=len(nfes) * values.rounds * (2 + blobs), disable=not sys.stderr.isatty()) as bar:
    return startup.measure(one.model, batch, nfes, values.rounds, blobs, bar.update), startup.COLUMNS


def _objectives(values: flags.FlagValues, subject: "Subject") -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import objectives

  count = len({objectives.BASE, *values.only}) + 1
  with tqdm(total=count * (values.rounds + 2), disable=not sys.stderr.isatty()) as bar:

    def show(name: str) -> None:
      bar.set_postfix_str(f"compiled {name}" if name else "timing", refresh=False)
      bar.update()

    size = batch_size(values, subject)
    rows = objectives.measure(
      workload_of(values, subject), size, values.rounds, values.seed, values.only, show
    )
  return rows, objectives.COLUMNS


def noise_levels(values: flags.FlagValues) -> tuple[float, ...]:
  """Return --sigmas.

  Raises:
    UserError: They are not descending noise levels.
  """
  from cm_jax.sampling.multistep import check_sigmas
  from cm_jax.types import NoiseRange

  return check_sigmas(parse_sigmas(values.sigmas), NoiseRange())


def _writing(values: flags.FlagValues, subject: "Subject") -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import sampling

  sigmas = noise_levels(values)
  rounds = values.rounds
  with tqdm(total=(len(sampling.OUTPUTS) + 1) * (rounds + 1), disable=not sys.stderr.isatty()) as bar:
    workload, size = workload_of(values, subject), batch_size(values, subject)
    rows = sampling.measure(workload, size, rounds, sigmas, values.num, values.seed, bar.update)
  return rows, sampling.COLUMNS


def _data(values: flags.FlagValues, subject: "Subject") -> Measured:
  import tempfile
  from pathlib import Path

  from tqdm import tqdm

  from cm_jax.benchmark import data
  from cm_jax.data.sources import validate_source

  specs = {spec: spec for spec in values.source or ()}
  for spec in specs:
    validate_source(spec)
  rounds, workers = values.rounds, values.workers
  with tempfile.TemporaryDirectory() as scratch:
    if not specs:
      make = lambda size: data.write_jpegs(Path(scratch) / str(size), size, values.seed)
      specs = {f"{size} px JPEGs": make(size) for size in (64, 256)}
    with tqdm(total=(2 * len(specs) + 1) * rounds, disable=not sys.stderr.isatty()) as bar:
      how = {"seed": values.seed, "progress": bar.update}
      workload, size = workload_of(values, subject), batch_size(values, subject)
      rows = data.measure(workload, specs, size, rounds, workers, **how)
  return rows, data.COLUMNS


def _features(values: flags.FlagValues, subject: "Subject") -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import features

  size, rounds = (whole_numbers(values, "batch") or [features.BATCH])[0], values.rounds
  count = len(values.features) + bool(values.beside)
  with tqdm(total=count * (rounds + 1), disable=not sys.stderr.isatty()) as bar:
    how = {"seed": values.seed, "progress": bar.update}
    rows = features.measure(values.features, values.weights, values.beside, size, rounds, **how)
  return rows, features.COLUMNS


def workload_of(values: flags.FlagValues, subject: "Subject") -> Workload:
  """Return the network and its images, in the first --dtype."""
  workload = subject.workload
  return (
    dataclasses.replace(workload, network={**workload.network, "dtype": values.dtype[0]})
    if values.dtype
    else workload
  )


MEASUREMENTS: dict[str, Callable[[flags.FlagValues, Any], Measured]] = {
  "sampling": _sampling,
  "train": _train,
  "loop": _loop,
  "compile": _compile,
  "startup": _startup,
  "objectives": _objectives,
  "writing": _writing,
  "data": _data,
  "features": _features,
}
