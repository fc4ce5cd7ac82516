"""Throughput of the data pipeline into device memory, in RAM and streamed, beside what a train step takes."""

import functools
import io
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cm_jax.benchmark.cases import BASE, CASES, Workload
from cm_jax.benchmark.objectives import Running, train_step
from cm_jax.benchmark.records import Column, text
from cm_jax.data.pipeline import FromSource, Pipeline, batches, rows_of
from cm_jax.data.sources import open_source

STEP = "train step"
JPEGS = 512  # files of the made-up folder


def measure(
  workload: Workload,
  specs: Mapping[str, str],
  batch_size: int,
  rounds: int,
  workers: int,
  seconds: float = 2.0,
  seed: int = 0,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Time batches of every source on their way to the device, and the denoising step of a network, in turns.

  Args:
    workload: The network, for the step.
    specs: Sources by what the table calls them.
    batch_size: Images a batch.
    rounds: Timings of each, of which medians are taken.
    workers: Processes that decode where the images are not in RAM.
    seconds: How long each timing takes, without the start of the processes.
    seed: Of order, weights and images.
    progress: Called after each timing.

  Returns:
    Rows with name, images, processes that decode, images_per_second, per_process, x_step (over the train
    step's rate) and `rates`, those of every round. The first row is the train step.
  """
  program = train_step(CASES[BASE], workload, batch_size)
  compiled = program.lower().compile()
  state, *rest = jax.jit(program.arguments, static_argnums=0)(seed)
  step = Running(compiled, state, tuple(rest))
  step()
  timings: dict[str, Callable[[], float]] = {STEP: lambda: _rate(_forever(step), batch_size, seconds)}
  about: dict[str, dict[str, Any]] = {STEP: {}}
  for name, spec in specs.items():
    source = open_source(spec)
    timed = functools.partial(_rate_of, seconds=seconds)
    in_ram, streamed = rows_of(source, np.inf), FromSource(source)
    timings[f"{name} in RAM"] = functools.partial(timed, Pipeline(in_ram, batch_size, seed), 0)
    timings[f"{name} streamed"] = functools.partial(timed, Pipeline(streamed, batch_size, seed), workers)
    size = {"images": len(source), "image_shape": list(source[0]["image"].shape)}
    about |= {f"{name} in RAM": size, f"{name} streamed": {**size, "processes": workers}}
  rates: dict[str, list[float]] = {name: [] for name in timings}
  for _ in range(rounds):
    for name, timing in timings.items():
      rates[name].append(timing())
      progress()
  rows = []
  for name, mine in rates.items():
    rate, processes = float(np.median(mine)), about[name].get("processes")
    compared = {"images_per_second": rate, "per_process": processes and rate / processes}
    compared |= {"x_step": rate / float(np.median(rates[STEP]))}
    rows.append({"name": name, **about[name], **compared, "rates": mine})
  return rows


def _forever(step: Callable[[], None]) -> Generator[None, None, None]:
  while True:
    step()
    yield


def _rate_of(pipeline: Pipeline, workers: int, seconds: float) -> float:
  return _rate(_placed(pipeline, workers), pipeline.batch_size, seconds)


def _placed(pipeline: Pipeline, workers: int) -> Generator[Any, None, None]:
  """Yield batches that are on the device."""
  source = batches(pipeline, 0, 10**6, workers)
  try:
    # What is prepared ahead while the processes start must not count.
    for number, batch in enumerate(source):
      placed = jax.block_until_ready(jax.device_put(batch))
      if number >= 4 * max(workers, 1):
        yield placed
  finally:
    source.close()


def _rate(steps: Generator[Any, None, None], batch_size: int, seconds: float) -> float:
  """Return images a second over so many seconds, from the end of the first batch."""
  next(steps)
  count, before = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - before) < seconds or not count:
    next(steps)
    count += 1
  steps.close()
  return count * batch_size / elapsed


def write_jpegs(folder: Path, size: int, seed: int = 0) -> str:
  """Write a folder of JPEGs (quality 90), as costly to decode as photographs, and return its spec."""
  from PIL import Image

  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True)
  for number in range(JPEGS):
    coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.integers(-12, 13, (size, size, 3)), 0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    (folder / f"{number:05d}.jpg").write_bytes(content.getvalue())
  return f"folder:{folder}"


COLUMNS: dict[str, Column] = {
  "data": lambda row: row["name"],
  "images": lambda row: text(row.get("images"), ","),
  "images/s": lambda row: f"{row['images_per_second']:,.0f}",
  "a process": lambda row: text(row["per_process"], ",.0f"),
  "x train step": lambda row: f"{row['x_step']:,.1f}",
}
