"""Devices: the mesh, and where each array lives on it. Device count never changes the maths."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cm_jax.errors import UserError
from cm_jax.training.layout import Rule, specs

T = TypeVar("T")
AXES = ("data", "fsdp")
_LINE = 4096  # bytes of an error that one process tells the others


def on_main(action: Callable[[], T]) -> T | None:
  """Let the first process of a job do something that it may have to refuse; the others get None.

  Raises:
    UserError: On every process, what it raised on the first.
  """
  if jax.process_count() == 1:
    return action()
  done, refused = None, b""
  if jax.process_index() == 0:
    try:
      done = action()
    except UserError as error:
      refused = json.dumps([error.field, str(error.value), error.expected]).encode()[:_LINE]
  told = multihost_utils.broadcast_one_to_all(np.frombuffer(refused.ljust(_LINE), np.uint8))
  line = bytes(np.asarray(told)).decode(errors="replace").strip()
  if line:
    raise UserError(*json.loads(line))
  return done


def agreed(value: int) -> int:
  """Return an integer as the first process of a job has it; every process calls it."""
  return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def preempted(step: int) -> bool:
  """Say whether the processes of a job should end after this step, which is the same for all of them.

  JAX takes their SIGTERM, and agrees on a step; every process has to ask after every step, with numbers that
  never fall.
  """
  return multihost_utils.reached_preemption_sync_point(step)


def mesh_shape(count: int, data: int = -1, fsdp: int = 1) -> tuple[int, int]:
  """Return (data, fsdp) of a mesh of `count` devices.

  Args:
    count: Devices of all processes.
    data: Replicas of the parameters; -1 for as many as there are devices left.
    fsdp: Devices that share one copy of the parameters.

  Raises:
    UserError: The product is not the number of devices.

  >>> mesh_shape(8), mesh_shape(8, fsdp=4)
  ((8, 1), (2, 4))
  """
  if fsdp < 1 or count % fsdp or (data != -1 and data < 1):
    raise UserError("fsdp", fsdp, f"a divisor of the {count} devices (and data -1 or positive)")
  data = count // fsdp if data == -1 else data
  if data * fsdp != count:
    raise UserError("data", data, f"{count // fsdp}, so that data * fsdp is the {count} devices, or -1")
  return data, fsdp


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
  """Return the mesh ("data", "fsdp") over all devices of all processes; see `mesh_shape`."""
  shape = mesh_shape(jax.device_count(), data, fsdp)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2)


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[Rule] = (), kind: str = "params") -> Any:
  """Return a NamedSharding for every leaf of a pytree of arrays or shapes; see `layout.specs`."""
  laid_out = specs(tree, mesh.shape["fsdp"], rules, kind)
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), laid_out, is_leaf=lambda leaf: isinstance(leaf, P)
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of a batch: its first dimension over all devices."""
  return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding of what every device holds whole."""
  return NamedSharding(mesh, P())


def abstract(tree: Any, shardings: Any) -> Any:
  """Return the shapes and dtypes of a pytree of arrays or shapes, each with the sharding of its leaf."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings
  )


def put(tree: Any, shardings: Any) -> Any:
  """Put arrays that every process holds whole, and alike, on the devices of all of them."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def part_of(leaf: Any, where: NamedSharding) -> jax.Array:
    whole = np.asarray(leaf)  # on the host: devices of one process are not copied to those of another
    return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])

  return jax.tree.map(part_of, tree, shardings)


def whole(leaf: jax.Array | np.ndarray) -> np.ndarray:
  """Return an array on this host, wherever its parts are; every process calls it."""
  if _is_spread(leaf):
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)


def _is_spread(leaf: jax.Array | np.ndarray) -> bool:
  is_here = isinstance(leaf, np.ndarray) or leaf.is_fully_addressable or leaf.is_fully_replicated
  return not is_here


def on_first_host(tree: T) -> T | None:
  """Return a tree with its arrays whole, on the host of the first process; the others get None.

  Every process calls it. Of what is shared between them no more than one array at a time is put together.
  """
  leaves, structure = jax.tree.flatten(tree)
  is_first = jax.process_index() == 0
  found = [whole(leaf) if is_first or _is_spread(leaf) else None for leaf in leaves]
  return jax.tree.unflatten(structure, found) if is_first else None


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Assemble the global batch from each process's own rows."""
  return {
    name: jax.make_array_from_process_local_data(batch_sharding(mesh), rows) for name, rows in batch.items()
  }


def check_batch_size(batch_size: int, accumulation: int, devices: int) -> None:
  """Check that devices and micro-batches divide the global batch.

  Raises:
    UserError: They do not; names the nearest batch sizes that would do.
  """
  unit = devices * accumulation
  if accumulation < 1:
    raise UserError("accumulation", accumulation, "an integer >= 1")
  if batch_size < 1 or batch_size % unit:
    lower, upper = batch_size // unit * unit, (batch_size // unit + 1) * unit
    near = f"{lower} or {upper}" if lower > 0 else f"{upper}"
    raise UserError(
      "batch_size",
      batch_size,
      f"a multiple of {devices} devices x {accumulation} micro-batches, such as {near}",
    )
