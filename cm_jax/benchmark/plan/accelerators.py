"""What accelerators can do: peak rates and memory, from their makers' data sheets."""

import dataclasses
import os
from typing import Any

from cm_jax.errors import UserError, one_of

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device as JAX counts them.

  Attributes:
    name: What a person calls it.
    memory: Bytes.
    usable: The share of it that JAX takes for arrays: by default 3/4 on a GPU
      (XLA_PYTHON_CLIENT_MEM_FRACTION); elsewhere an assumption.
    bfloat16, tensorfloat32, float32: Peak FLOP/s of dense products whose operands have so many bits. A TPU
      multiplies bfloat16 only: three products make JAX's "tensorfloat32", six its float32.
    source: Where the figures are from.
  """

  name: str
  memory: int
  usable: float
  bfloat16: float
  tensorfloat32: float
  float32: float
  source: str

  def rate(self, dtype: str, precision: str) -> float:
    """Return the peak FLOP/s of products in a network's `dtype`, at a `matmul_precision` where that is
    float32.

    >>> ACCELERATORS["a100"].rate("bfloat16", "highest"), ACCELERATORS["a100"].rate("float32", "highest")
    (312000000000000.0, 19500000000000.0)
    """
    if dtype == "bfloat16":
      return self.bfloat16
    by_precision = {"highest": self.float32, "tensorfloat32": self.tensorfloat32}
    if precision in by_precision:
      return by_precision[precision]
    # "bfloat16" and JAX's own default are a TPU's one product, and TensorFloat-32 on a GPU
    return self.bfloat16 if _is_tpu(self) else self.tensorfloat32


def _is_tpu(accelerator: Accelerator) -> bool:
  return accelerator.name.startswith("TPU")


def _tpu(name: str, memory_gib: int, bfloat16: float, source: str) -> Accelerator:
  return Accelerator(name, memory_gib * GIB, 0.95, bfloat16, bfloat16 / 3, bfloat16 / 6, source)


_TPU_DOCS = "docs.cloud.google.com/tpu/docs"
ACCELERATORS: dict[str, Accelerator] = {
  "a100": Accelerator(
    "NVIDIA A100 80GB SXM", 80 * 10**9, 0.75, 312e12, 156e12, 19.5e12, "NVIDIA A100 data sheet, dense"
  ),
  "h100": Accelerator(
    "NVIDIA H100 SXM", 80 * 10**9, 0.75, 989.4e12, 494.7e12, 66.9e12, "NVIDIA H100 data sheet, dense"
  ),
  "h200": Accelerator(
    "NVIDIA H200 SXM", 141 * 10**9, 0.75, 989.4e12, 494.7e12, 66.9e12, "NVIDIA H200 data sheet, dense"
  ),
  "v5e": _tpu("TPU v5e", 16, 197e12, f"{_TPU_DOCS}/v5e"),
  "v5p": _tpu("TPU v5p", 95, 459e12, f"{_TPU_DOCS}/v5p"),
  "v6e": _tpu("TPU v6e", 32, 918e12, f"{_TPU_DOCS}/v6e"),
  "tpu7x": _tpu("TPU7x, half a chip", 96, 2307e12 / 2, f"{_TPU_DOCS}/tpu7x: a chip is two devices of JAX's"),
}
# Of one core of the processor that ../shared/performance.md was measured on: a product of 1024 x 1024.
_CORE = 0.23e12
# How the kind of a JAX device begins, by the name here; the longest that fits counts.
_KINDS = {
  "NVIDIA A100": "a100", "NVIDIA H100": "h100", "NVIDIA H200": "h200", "TPU v5 lite": "v5e", "TPU v5": "v5p",
  "TPU v6 lite": "v6e", "TPU7x": "tpu7x", "cpu": "cpu",
}  # fmt: skip
NAMES = (*ACCELERATORS, "cpu")


def accelerator(name: str, count: int = 1) -> Accelerator:
  """Return an accelerator by name; "cpu" is a share of this machine, on which `count` of them are.

  Raises:
    UserError: It is not known.

  >>> accelerator("v5e").memory // GIB
  16
  """
  if name == "cpu":
    cores, memory = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rate, memory = cores * _CORE / count, memory // count
    source = f"this machine; {_CORE / 1e12} TFLOP/s a core, as measured on an AMD EPYC with AVX-512"
    return Accelerator(f"1/{count} of a CPU with {cores} cores", memory, 0.8, rate, rate, rate, source)
  if name not in ACCELERATORS:
    raise UserError("device", name, one_of(NAMES, name))
  return ACCELERATORS[name]


def of_device(device: Any, count: int) -> Accelerator | None:
  """Return what a JAX device is, with the memory that its own runtime says it has; None where it is of a kind
  that is not known.

  Args:
    device: One of `count` alike.
    count: On this machine, if they are shares of a CPU.
  """
  kinds = [kind for kind in _KINDS if device.device_kind.startswith(kind)]
  if not kinds:
    return None
  known = accelerator(_KINDS[max(kinds, key=len)], count)
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return known if limit is None else dataclasses.replace(known, memory=limit, usable=1.0)
