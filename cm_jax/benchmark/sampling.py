"""Throughput of sampling: the jitted sampler alone, and on the way to the disk, as `cm_jax sample` writes."""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cm_jax.assembly import assemble, model_of
from cm_jax.benchmark.cases import CASES, Workload, config_of
from cm_jax.benchmark.plan.flops import count
from cm_jax.benchmark.records import Column, text
from cm_jax.benchmark.timing import ratio
from cm_jax.evaluation.timing import in_turns
from cm_jax.sampling.generate import generate, make_generator
from cm_jax.sampling.multistep import Multistep
from cm_jax.storage.samples import SampleStore, shard_size

ALONE = "jitted sampler"
OUTPUTS = {"to .npz": "samples.npz", "to .zip": "samples.zip", "to a folder": "samples"}


def measure(
  workload: Workload,
  batch_size: int,
  rounds: int,
  sigmas: Sequence[float],
  num: int,
  seed: int = 0,
  progress: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
  """Time drawing `num` images, in turns: the jitted program alone, and through `SampleStore` to each format.

  Args:
    workload: The network and its image shape; random weights.
    batch_size: Images at a time.
    rounds: Timings of each, of which medians are taken.
    sigmas: Of multistep sampling.
    num: Images a timing; raised to whole batches.
    seed: Of weights and noise.
    progress: Called after each timing.

  Returns:
    Rows with name, images_per_second, ratio (median over rounds of the sampler's time over this one's),
    flops_per_second (`plan.flops`; of the sampler alone), and `seconds`, those of every round.
  """
  method = assemble(config_of(CASES["ct"], workload, batch_size), workload.image_shape, 0)
  params = jax.jit(method.init)(jax.random.key(seed))
  model = model_of(method.config.to_dict(), params)
  generator, number = make_generator(model, Multistep(model.noise, tuple(sigmas))), np.uint32(seed)
  shard = shard_size(batch_size)
  num = -(-num // batch_size) * batch_size
  batches = [jnp.arange(start, start + batch_size, dtype=jnp.int32) for start in range(0, num, batch_size)]

  def alone() -> None:
    jax.block_until_ready([generator(params, number, indices, None) for indices in batches])

  with tempfile.TemporaryDirectory() as scratch:

    def to_disk(name: str) -> Callable[[], None]:
      numbers = itertools.count()

      def write() -> None:
        out = Path(scratch) / f"{next(numbers)}{name}"
        store = SampleStore(out, {}, num, shard)
        store.begin()
        draw = lambda indices: generate(generator, params, indices, 0, batch_size, seed=seed)
        store.collect(draw, store.missing())
        store.finish(None)

      return write

    programs = {ALONE: alone, **{name: to_disk(file) for name, file in OUTPUTS.items()}}
    seconds = in_turns(programs, rounds, progress=progress)
  plain = dataclasses.replace(workload, network={**workload.network, "kernels": "plain"})
  method = assemble(config_of(CASES["ct"], plain, batch_size), plain.image_shape, 0)
  same = make_generator(model_of(method.config.to_dict(), params), Multistep(model.noise, tuple(sigmas)))
  counted = count(jax.make_jaxpr(same)(params, number, batches[0], None))
  rows: list[dict[str, Any]] = []
  for name, mine in seconds.items():
    rate = num / float(np.median(mine))
    compared = {"images_per_second": rate, "ratio": ratio(seconds[ALONE], mine), "seconds": mine}
    rows.append({"name": name, **compared})
  rows[0]["flops_per_second"] = counted / batch_size * rows[0]["images_per_second"]
  return rows


COLUMNS: dict[str, Column] = {
  "sampling": lambda row: row["name"],
  "images/s": lambda row: f"{row['images_per_second']:.1f}",
  "of the sampler's": lambda row: f"{row['ratio']:.3f}",
  "GFLOP/s": lambda row: text(row.get("flops_per_second") and row["flops_per_second"] / 1e9, ".1f"),
}
