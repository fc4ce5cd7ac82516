"""Memory that does not suffice: a line that says what takes less, in place of a traceback of XLA's."""

import contextlib
import re
from collections.abc import Iterator

from absl import flags

from cm_jax.errors import UserError

SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY")
OF_TRAINING = (
  "less memory a device: a smaller config.batch_size, more config.accumulation (micro-batches in a step), "
  "config.network.remat = True (computes activations twice), config.network.dtype = bfloat16, "
  "or config.mesh.fsdp to share parameters between devices"
)


@contextlib.contextmanager
def told(values: flags.FlagValues) -> Iterator[None]:
  """Turn what JAX and NumPy say when there is no memory left into an error of one line.

  Raises:
    UserError: Names what takes less: for `train` keys of the config, for other commands their flag.
  """
  try:
    yield
  except (RuntimeError, MemoryError, ValueError) as error:  # XLA's errors are RuntimeErrors
    said = str(error)
    if not isinstance(error, MemoryError) and not any(sign in said for sign in SIGNS):
      raise
    wanted = f"out of memory{_asked_for(said)}"
    if "config" in values:
      raise UserError("config.batch_size", wanted, OF_TRAINING) from error
    if "batch_size" in values:
      raise UserError(
        "--batch_size", f"{values['batch_size'].value}, {wanted}", "fewer images at a time"
      ) from error
    raise UserError("memory", wanted, "smaller images, or fewer of them") from error


def _asked_for(said: str) -> str:
  """Say how much was asked for.

  >>> _asked_for("RESOURCE_EXHAUSTED: Out of memory allocating 392495930136 bytes.")
  ' for 392.5 GB'
  >>> _asked_for("Unable to allocate 1.2 TiB for an array")
  ' for 1.2 TiB'
  """
  if found := re.search(r"allocat\w+ (\d+) bytes", said):
    return f" for {int(found[1]) / 1e9:,.1f} GB"
  found = re.search(r"allocat\w+ ([\d.]+ ?[KMGT]i?B)", said)
  return f" for {found[1]}" if found else ""
