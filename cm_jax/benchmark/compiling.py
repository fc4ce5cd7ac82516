"""What it takes until a program can run: tracing, compiling, and compiling with the persistent cache."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from cm_jax.benchmark.objectives import flops, temp_bytes
from cm_jax.benchmark.records import Column, text

# What decides about the cache; all is put back.
SETTINGS = {
  "jax_persistent_cache_min_compile_time_secs": 0.0,
  "jax_persistent_cache_min_entry_size_bytes": -1,
}


def measure(
  programs: Sequence[tuple[dict[str, Any], Callable[[], jax.stages.Lowered]]],
  rounds: int = 1,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Compile every program with an empty cache and then from it.

  Args:
    programs: What tells them apart, and what traces and lowers one.
    rounds: Of which medians are taken.
    progress: Called after each compilation from the cache.

  Returns:
    Rows with lower_seconds, cold_seconds, cached_seconds (what a second process takes, tracing apart),
    temp_bytes, flops (counted after optimising).
  """
  rows = []
  for about, lower in programs:
    taken: dict[str, list[float]] = {"lower_seconds": [], "cold_seconds": [], "cached_seconds": []}
    for _ in range(rounds):
      with _empty_cache():
        for name in ("cold_seconds", "cached_seconds"):
          jax.clear_caches()
          before = time.perf_counter()
          lowered = lower()
          taken["lower_seconds"].append(time.perf_counter() - before)
          before = time.perf_counter()
          compiled = lowered.compile()
          taken[name].append(time.perf_counter() - before)
        progress()
    medians = {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
    rows.append({**about, **medians, "temp_bytes": temp_bytes(compiled), "flops": flops(compiled)})
  return rows


@contextmanager
def _empty_cache() -> Iterator[None]:
  before = {name: getattr(jax.config, name) for name in (*SETTINGS, "jax_compilation_cache_dir")}
  with tempfile.TemporaryDirectory() as folder:
    try:
      for name, value in {**SETTINGS, "jax_compilation_cache_dir": folder}.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()
      yield
    finally:
      for name, value in before.items():
        jax.config.update(name, value)
      compilation_cache.reset_cache()


COLUMNS: dict[str, Column] = {
  "compile": lambda row: row["program"],
  "dtype": lambda row: row["dtype"],
  "batch": lambda row: str(row["batch"]),
  "trace + lower s": lambda row: f"{row['lower_seconds']:.2f}",
  "cold s": lambda row: f"{row['cold_seconds']:.2f}",
  "cached s": lambda row: f"{row['cached_seconds']:.2f}",
  "temp MiB": lambda row: text(row["temp_bytes"] and row["temp_bytes"] / 2**20, ".0f"),
}
