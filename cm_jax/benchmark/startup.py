"""How long a new process takes to its first images: with nothing compiled, from the cache, from a blob."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from cm_jax.assembly import load_model
from cm_jax.benchmark.records import Column
from cm_jax.benchmark.sweep import sampler_of
from cm_jax.benchmark.timing import ratio, spread
from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.sampling.generate import Generator, balanced_labels, make_generator
from cm_jax.storage import weights
from cm_jax.types import Array

COLD, CACHED, EXPORTED = "traced, compiled", "traced, from the cache", "jax.export blob, from the cache"
_BLOB = "generator.bin"
_READY = "the first images are there"  # what a child says
# Nothing is too small to be kept, so that a warm process compiles nothing.
_KEEPS_ALL = {
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # this process has the GPU too
}


def measure(
  model: Model,
  batch: int,
  nfes: Sequence[int],
  rounds: int,
  blobs: bool = True,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Start processes that load a model and sample, in turns; time each from its start to its first images.

  Args:
    model: What is sampled; every process reads its weights from a folder that is removed.
    batch: Images at a time.
    nfes: Network evaluations an image.
    rounds: Timings of each.
    blobs: Also of a process that reads a serialised `jax.export.Exported` of the sampler in place of building
      the network and tracing it; needs flatbuffers.
    progress: Called after each process.

  Returns:
    Rows with start (`COLD`, `CACHED`, `EXPORTED`), nfe, batch, median_seconds and its quartiles low and high,
    x_cached (its time over that of `CACHED`, median over rounds), blob_bytes (None but of a blob) and
    `seconds` of every round.

  Raises:
    UserError: A TPU, which one process at a time can have; several processes; one that failed.
  """
  if jax.process_count() > 1 or jax.default_backend() == "tpu":
    raise UserError("what", "startup", "one process on a CPU or GPU: it starts others on the same device")
  rows = []
  for nfe in nfes:
    with tempfile.TemporaryDirectory() as scratch:
      folder = Path(scratch)
      params = jax.device_get(model.params)
      origin = {"source_sha256": "", "licence": "yours"}
      weights.save_weights(folder / "weights", params, {**weights.info_of(model), **origin})
      starts = [COLD, CACHED]
      if blobs:
        generator = make_generator(model, sampler_of(model, nfe))
        exported = jax.export.export(jax.jit(generator))(params, *_arguments(batch, model.num_classes))
        (folder / _BLOB).write_bytes(exported.serialize())
        starts.append(EXPORTED)
        _seconds("exported", folder, folder / "cache", nfe, batch)  # its program is another one to the cache
      times: dict[str, list[float]] = {start: [] for start in starts}
      for again, start in itertools.product(range(rounds), starts):
        # the first cold process leaves what the warm ones find
        cache = folder / "cache" if start != COLD or not again else folder / f"cache{again}"
        how = "exported" if start == EXPORTED else "traced"
        times[start].append(_seconds(how, folder, cache, nfe, batch))
        progress()
      size = (folder / _BLOB).stat().st_size if blobs else None
      rows += [_row(start, nfe, batch, times, size) for start in starts]
  return rows


def _row(start: str, nfe: int, batch: int, times: dict[str, list[float]], size: int | None) -> dict[str, Any]:
  took = spread(times[start])
  return {
    "start": start,
    "nfe": nfe,
    "batch": batch,
    "median_seconds": took.median,
    "low": took.low,
    "high": took.high,
    "x_cached": ratio(times[start], times[CACHED]),
    "blob_bytes": size if start == EXPORTED else None,
    "seconds": times[start],
  }


def _seconds(how: str, folder: Path, cache: Path, nfe: int, batch: int) -> float:
  """Return what a process takes from its start until it says that it has images."""
  code = f"from cm_jax.benchmark import startup; startup.{how}({str(folder)!r}, {nfe}, {batch})"
  env = {**os.environ, **_KEEPS_ALL, "JAX_COMPILATION_CACHE_DIR": str(cache)}
  before = time.perf_counter()
  command = [sys.executable, "-c", code]
  # Into a file: a pipe that nobody reads would stop a process that warns a lot.
  with (
    tempfile.TemporaryFile("w+", dir=folder) as errors,
    subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
  ):
    said = ""
    assert child.stdout is not None
    for said in child.stdout:
      if said.strip() == _READY:
        break
    took = time.perf_counter() - before
    child.wait()
    errors.seek(0)
    last = errors.read().strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
  if child.returncode or said.strip() != _READY:
    raise UserError("what", "startup", f"a process that samples; it said: {last[0]}")
  return took


def traced(folder: str, nfe: int, batch: int) -> None:
  """In a process of its own: load the model, build its sampler, sample once."""
  model = load_model(f"{folder}/weights")
  _sample(make_generator(model, sampler_of(model, nfe)), model.params, batch, model.num_classes)


def exported(folder: str, nfe: int, batch: int) -> None:
  """In a process of its own: read the weights and the sampler's program, sample once."""
  del nfe  # the program has it
  params, info = weights.load_weights(f"{folder}/weights")
  program = jax.export.deserialize(bytearray(Path(folder, _BLOB).read_bytes()))
  _sample(jax.jit(program.call), params, batch, info["num_classes"])


def _sample(generator: Generator, params: Any, batch: int, num_classes: int) -> None:
  jax.block_until_ready(generator(params, *_arguments(batch, num_classes)))
  print(_READY, flush=True)


def _arguments(batch: int, num_classes: int) -> tuple[np.uint32, Array, Array | None]:
  indices = np.arange(batch, dtype=np.int32)
  labels = balanced_labels(indices, num_classes)
  return np.uint32(0), jax.device_put(indices), None if labels is None else jax.device_put(labels)


COLUMNS: dict[str, Column] = {
  "first images": lambda row: row["start"],
  "NFE": lambda row: str(row["nfe"]),
  "batch": lambda row: str(row["batch"]),
  "s": lambda row: f"{row['median_seconds']:.2f}",
  "quartiles": lambda row: f"{row['low']:.2f} to {row['high']:.2f}",
  "x from the cache": lambda row: f"{row['x_cached']:.2f}",
}
