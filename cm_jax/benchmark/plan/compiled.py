"""What XLA itself says of a train step's memory: it is compiled for as many devices, and not run."""

import dataclasses
from typing import Any

import jax

from cm_jax.benchmark.plan.setting import Setting
from cm_jax.errors import UserError
from cm_jax.training import sharding
from cm_jax.training.program import place_step


@dataclasses.dataclass(frozen=True)
class Compiled:
  """XLA's figures for one device.

  Attributes:
    backend: What it was compiled for.
    arguments: Bytes of state, batch and frozen weights; the new state takes their place.
    temporaries: Bytes of all between.
    flops: Of a device's program; None where it is not said. A loop's body counts once.
  """

  backend: str
  arguments: int
  temporaries: int
  flops: float | None


def ask_for_devices(count: int) -> None:
  """Let a CPU be so many devices; before JAX has started any.

  Raises:
    UserError: It has, and they are not so many.
  """
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:
    check_devices(count)


def check_devices(count: int) -> None:
  """Check that this process has so many devices to compile for.

  Raises:
    UserError: It has not.
  """
  if jax.device_count() != count:
    expected = f"{jax.device_count()}, the devices of this process (JAX_PLATFORMS=cpu: as many as asked for)"
    raise UserError("count", count, expected)


def compile_step(setting: Setting) -> Compiled:
  """Compile the whole train step for all devices of this process.

  Raises:
    UserError: The mesh does not divide them.
  """
  config = setting.method.config
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  frozen = setting.teacher_params, setting.distance_params
  step, _ = place_step(setting.method, setting.teacher, mesh, setting.state, frozen)
  program: Any = jax.jit(step).lower(*setting.step_arguments(config.batch_size)).compile()
  memory, costs = program.memory_analysis(), program.cost_analysis()
  flops = None if not costs or "flops" not in costs else float(costs["flops"])
  return Compiled(
    jax.default_backend(), int(memory.argument_size_in_bytes), int(memory.temp_size_in_bytes), flops
  )
