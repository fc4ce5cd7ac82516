"""Images a second of sampling and of training, over batch sizes, network evaluations, types and devices.

All that is compared is timed in turns with one matrix product of known size, which says what the machine
gave while it was measured: by its rate as the peak, and by its spread as noise.
"""

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.benchmark.records import Column, text
from cm_jax.benchmark.sweep import Variant, waited
from cm_jax.benchmark.timing import Spread, ratio, spread
from cm_jax.evaluation.timing import in_turns

MATMUL = "matrix product"
OURS = "cm_jax"
SIDE = 1024  # of its operands
NOISY = (
  0.1  # interquartile range over the median of the matrix product's time from which numbers are doubtful
)
LATENCIES, LATENCY_SECONDS = 200, 10.0  # single images: so many, or as many as fit


def measure(
  variants: Sequence[Variant],
  rounds: int,
  peak: float | None = None,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Time programs in turns.

  Args:
    variants: What is timed.
    rounds: Timings of each.
    peak: FLOP/s that count as all of the machine; by default those of the matrix product.
    progress: Called after each timing.

  Returns:
    A row each, the others' after ours: what tells it apart, by (ours or another's name), images_per_second
    (median), its quartiles, `ratio` (ours: 1; another's: the median over rounds of its time over ours),
    latency p50_ms and p99_ms where the batch is one image, compile_seconds, temp_bytes, peak_bytes, flops,
    xla_flops, flops_per_second, mfu, `noise` (the matrix product's spread) and whether that is `noisy`, and
    the seconds of every round.
  """
  operand = jnp.ones((SIDE, SIDE))
  multiply = jax.jit(jnp.matmul).lower(operand, operand).compile()
  programs: dict[str, Callable[[], None]] = {MATMUL: lambda: waited(multiply, (operand, operand))}
  timed: list[tuple[str, str, str, Variant]] = []
  for number, variant in enumerate(variants):
    for by, call in {OURS: variant.call, **variant.beside}.items():
      timed.append((f"{number} {by}", f"{number} {OURS}", by, variant))
      programs[f"{number} {by}"] = call
  seconds = in_turns(programs, rounds, progress=progress)
  product = spread(seconds.pop(MATMUL))
  measured = 2 * SIDE**3 / product.median
  rows = []
  for name, base, by, variant in timed:
    mine = seconds[name]
    times = spread(mine)
    rate = variant.images / times.median
    row = {**variant.about, "by": by, "images_per_second": rate, "ms": 1e3 * times.median}
    row |= {"images_per_second_quartiles": [variant.images / times.high, variant.images / times.low]}
    row |= {"ratio": ratio(mine, seconds[base]), "seconds": mine, **_noise(product)}
    row |= _latency(programs[name]) if variant.images == 1 and variant.about["nfe"] else {}
    if by == OURS:
      row |= {"compile_seconds": variant.compile_seconds, "temp_bytes": variant.temp_bytes}
      row |= {"peak_bytes": peak_bytes()}
    done = variant.flops / times.median
    ceiling = peak or measured * variant.about["devices"]
    row |= {"flops": variant.flops, "xla_flops": variant.xla_flops}
    row |= {"flops_per_second": done, "mfu": done / ceiling}
    row |= {"matmul_flops_per_second": measured, "peak_flops_per_second": ceiling}
    rows.append(row)
  return rows


def noisy(rows: Sequence[dict[str, Any]]) -> str | None:
  """Return what is to be said of a machine that was busy with other things, None for a quiet one."""
  if not rows or not rows[0]["noisy"]:
    return None
  low, high = rows[0]["noise_ms"]
  return (
    f"noisy: one and the same matrix product took {low:.1f} to {high:.1f} ms (quartiles) meanwhile; ratios "
    "hold better than rates"
  )


def _noise(product: Spread) -> dict[str, Any]:
  share = (product.high - product.low) / product.median
  return {
    "noise": share,
    "noisy": share > NOISY,
    "noise_ms": [1e3 * product.low, 1e3 * product.high],
  }


def _latency(call: Callable[[], None]) -> dict[str, float]:
  taken: list[float] = []
  end = time.perf_counter() + LATENCY_SECONDS
  while len(taken) < LATENCIES and (not taken or time.perf_counter() < end):
    before = time.perf_counter()
    call()
    taken.append(time.perf_counter() - before)
  p50, p99 = np.percentile(taken, [50, 99])
  return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99), "latencies": len(taken)}


def peak_bytes() -> int:
  """Return the most memory used so far: of the first device where it tells, else of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return int(stats.get("peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def _milliseconds(row: dict[str, Any], which: str) -> str:
  return text(row.get(which), ".2f")


COLUMNS: dict[str, Column] = {
  "what": lambda row: row["what"],
  "by": lambda row: row["by"],
  "dtype": lambda row: row["dtype"],
  "devices": lambda row: str(row["devices"]),
  "batch": lambda row: str(row["batch"]),
  "NFE": lambda row: text(row["nfe"], "d"),
  "images/s": lambda row: f"{row['images_per_second']:,.1f}",
  "quartiles": lambda row: " to ".join(f"{rate:,.1f}" for rate in row["images_per_second_quartiles"]),
  "x our time": lambda row: f"{row['ratio']:.3f}",
  "p50 ms": lambda row: _milliseconds(row, "p50_ms"),
  "p99 ms": lambda row: _milliseconds(row, "p99_ms"),
  "GFLOP/s": lambda row: f"{row['flops_per_second'] / 1e9:.1f}",
  "MFU": lambda row: f"{row['mfu']:.2f}",
  "temp MiB": lambda row: text(row.get("temp_bytes") and row["temp_bytes"] / 2**20, ".0f"),
  "compile s": lambda row: text(row.get("compile_seconds"), ".1f"),
}
