"""Measure what things cost on this machine: what is compared is timed in turns, in one process.

  python -m cm_jax benchmark --what=objectives --out=costs.json
  python -m cm_jax benchmark --what=objectives --network=digits --only=ct,cd_heun --rounds=15
  python -m cm_jax benchmark --what=sampling --network=cifar --batch_size=16 --num=64
  python -m cm_jax benchmark --what=data --network=cifar --source=folder:/path --source=zip:/path.zip
  python -m cm_jax benchmark --what=features --features=inception,dinov2-b,digits --beside=torch

--what=objectives: a train step of every objective beside plain denoising; the same network and synthetic
images for all, random weights also for the teacher. Columns: FLOPs of a step and their ratio to denoising's;
median time; the median over rounds of the ratio of times; (step - denoising) in forward passes of the
network; memory of intermediate values.

--what=sampling: images a second of the jitted sampler alone and on their way to the disk as `sample` writes
them, and the median over rounds of the ratio of times.

--what=data: images a second of every --source into device memory, from RAM and streamed by worker processes,
beside the denoising step of --network; without --source, of folders of made-up JPEGs of 64 and 256 pixels.

--what=features: seconds that a thousand images take in each network of --features that measures images; of
random weights, but where --weights or a folder has some. --beside=torch times Inception in torch too, with
the same weights on the same processors, and gives the median over rounds of the ratio of times.

Nothing is written but --out.
"""

import sys
from typing import Any, TypeAlias

from absl import flags

from cm_jax.benchmark.cases import CASES, WORKLOADS, Workload, case_of
from cm_jax.benchmark.records import Column, check_out, circumstances, table, write
from cm_jax.cli.flags import is_main, parse_sigmas, start
from cm_jax.config import default

Measured: TypeAlias = tuple[list[dict[str, Any]], dict[str, Column]]


def define(values: flags.FlagValues) -> None:
  """Declare the flags."""
  text = lambda name, default, about: flags.DEFINE_string(name, default, about, flag_values=values)
  flags.DEFINE_enum("what", "objectives", list(MEASUREMENTS), "What to measure.", flag_values=values)
  about = "small: 32x32 images; digits: that of configs/digits_edm.py; cifar: DDPM++, 55.7 M parameters."
  flags.DEFINE_enum("network", "small", list(WORKLOADS), about, flag_values=values)
  flags.DEFINE_integer("rounds", 7, "Timings of each.", lower_bound=1, flag_values=values)
  about = "Images at a time; by default the network's own."
  flags.DEFINE_integer("batch_size", None, about, lower_bound=1, flag_values=values)
  about = "Objectives to measure, these or any other by its name; denoising always is."
  flags.DEFINE_list("only", list(CASES), about, flag_values=values)
  text("sigmas", "80", "Noise levels of the sampler.")
  flags.DEFINE_integer("num", 2048, "Images a timing of sampling.", lower_bound=1, flag_values=values)
  about = "Data set to read; may be given several times."
  flags.DEFINE_multi_string("source", None, about, flag_values=values)
  about = "Processes that decode images which are not in RAM."
  flags.DEFINE_integer("workers", 2, about, lower_bound=1, flag_values=values)
  about = "Networks that measure images, by name, or folders that train-features wrote."
  flags.DEFINE_list("features", ["inception"], about, flag_values=values)
  text("weights", None, "Of the one network of --features; random if not given.")
  text("beside", None, "Time Inception in this as well: torch, if installed.")
  flags.DEFINE_integer("seed", 0, "Of weights, images and noise.", lower_bound=0, flag_values=values)
  text("out", None, "JSON file with every number and where it was measured.")


def main(values: flags.FlagValues) -> None:
  """Measure, print the table, write the record."""
  for name in values.only:
    case_of(name)
  check_out(values.out)
  start()
  workload = WORKLOADS[values.network]
  batch_size = values.batch_size or workload.batch_size
  rows, columns = MEASUREMENTS[values.what](values, workload, batch_size)
  if not is_main():
    return
  print(table(rows, columns))
  if values.out:
    about = {"batch_size": batch_size, **{key: values[key].value for key in ("rounds", "seed")}}
    config = {"network": workload.network, "image_shape": workload.image_shape}
    config |= {"matmul_precision": default().matmul_precision}  # as cases.config_of
    what = {"what": values.what, "network": values.network, **about, "config": config}
    write({**what, **circumstances(), "rows": rows}, values.out)


def _objectives(values: flags.FlagValues, workload: Workload, batch_size: int) -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import objectives

  count = len({objectives.BASE, *values.only}) + 1
  with tqdm(total=count * (values.rounds + 2), disable=not sys.stderr.isatty()) as bar:

    def show(name: str) -> None:
      bar.set_postfix_str(f"compiled {name}" if name else "timing", refresh=False)
      bar.update()

    rows = objectives.measure(workload, batch_size, values.rounds, values.seed, values.only, show)
  return rows, objectives.COLUMNS


def _sampling(values: flags.FlagValues, workload: Workload, batch_size: int) -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import sampling
  from cm_jax.sampling.multistep import check_sigmas
  from cm_jax.types import NoiseRange

  sigmas = check_sigmas(parse_sigmas(values.sigmas), NoiseRange())
  rounds = values.rounds
  with tqdm(total=(len(sampling.OUTPUTS) + 1) * (rounds + 1), disable=not sys.stderr.isatty()) as bar:
    rows = sampling.measure(workload, batch_size, rounds, sigmas, values.num, values.seed, bar.update)
  return rows, sampling.COLUMNS


def _data(values: flags.FlagValues, workload: Workload, batch_size: int) -> Measured:
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
      rows = data.measure(workload, specs, batch_size, rounds, workers, **how)
  return rows, data.COLUMNS


def _features(values: flags.FlagValues, workload: Workload, batch_size: int) -> Measured:
  from tqdm import tqdm

  from cm_jax.benchmark import features

  batch_size, rounds = values.batch_size or features.BATCH, values.rounds
  count = len(values.features) + bool(values.beside)
  with tqdm(total=count * (rounds + 1), disable=not sys.stderr.isatty()) as bar:
    how = {"seed": values.seed, "progress": bar.update}
    rows = features.measure(values.features, values.weights, values.beside, batch_size, rounds, **how)
  return rows, features.COLUMNS


MEASUREMENTS = {"objectives": _objectives, "sampling": _sampling, "data": _data, "features": _features}
