"""The plan of a run: what it computes, holds and takes, and what to do where it does not fit."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from cm_jax.benchmark.plan import activations, costs
from cm_jax.benchmark.plan.accelerators import Accelerator
from cm_jax.benchmark.plan.memory import Held, held, tree_bytes
from cm_jax.benchmark.plan.remat import with_remat
from cm_jax.benchmark.plan.setting import Setting
from cm_jax.errors import UserError, within
from cm_jax.networks.remat import REMAT_POLICIES
from cm_jax.training import sharding
from cm_jax.types import parameter_count

MFU = 0.35  # of published runs 15 to 35 % of the peak are known


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run will take.

  Attributes:
    accelerator, count: What it is planned for.
    data, fsdp: The mesh.
    parameters: Trained.
    flops: Of an image in training, by part (`costs.PARTS`).
    memory: Bytes a device, by kind (`memory.KINDS`).
    activations: Bytes a device with remat off and on, as "off" and "on"; None where it is not known.
    usable: Bytes of a device that arrays can take.
    batch_size, accumulation, at_a_time: Images a step, micro-batches in it, images of one on a device.
    most_at_a_time: Images that would fit.
    steps: Of the run.
    rate: Peak FLOP/s of a device for what it computes in.
    mfu: The share of it that is assumed.
    checkpoint: Bytes of one, before compression.
    suggestions: Where it does not fit: what would.
    assumed: What had to be assumed.
  """

  accelerator: Accelerator
  count: int
  data: int
  fsdp: int
  parameters: int
  flops: dict[str, float]
  memory: dict[str, int]
  activations: dict[str, int | None]
  usable: int
  batch_size: int
  accumulation: int
  at_a_time: int
  most_at_a_time: int
  steps: int
  rate: float
  mfu: float
  checkpoint: int
  suggestions: tuple[str, ...]
  assumed: tuple[str, ...]

  @property
  def fits(self) -> bool:
    """Whether a device holds it all."""
    return sum(self.memory.values()) <= self.usable

  @property
  def flops_a_step(self) -> float:
    """FLOPs of a step on all devices."""
    return sum(self.flops.values()) * self.batch_size

  @property
  def hours(self) -> float:
    """How long the run takes, without evaluation, waiting and compiling."""
    return self.steps * self.flops_a_step / (self.count * self.rate * self.mfu) / 3600

  def to_dict(self) -> dict[str, Any]:
    """Return all of it as JSON types."""
    return {
      **dataclasses.asdict(self),
      "fits": self.fits,
      "flops_a_step": self.flops_a_step,
      "days": self.hours / 24,
      "device_hours": self.hours * self.count,
      "images_per_second": self.batch_size * self.steps / (self.hours * 3600),
    }


def plan(
  setting: Setting, accelerator: Accelerator, count: int, mfu: float = MFU, remat: bool = True
) -> Plan:
  """Plan a run on `count` devices.

  Args:
    setting: From `setting.of_config` or `setting.of_experiment`.
    accelerator: The devices.
    count: How many.
    mfu: Share of their peak rate that is reached.
    remat: Of a run with remat also find out what it would hold without, which takes as long again. Without it
      what remat would change is always told.

  Raises:
    UserError: The mesh or the batch does not divide among so many devices.
  """
  method = setting.method
  config = method.config
  with within("config.mesh"):
    data, fsdp = sharding.mesh_shape(count, config.mesh.data, config.mesh.fsdp)
  with within("config"):
    sharding.check_batch_size(config.batch_size, config.accumulation, count)
  at_a_time = max(config.batch_size // count // config.accumulation, method.objective.needs.group)
  traced = costs.Traced(setting, at_a_time)
  is_on = bool(config.network.get("remat", False))
  holds, taken = held(setting), activations.peak_of(traced.flat, with_results=False)
  fixed = holds.on_a_device(fsdp)
  usable = int(accelerator.memory * accelerator.usable)
  found: dict[str, int | None] = {"off": None, "on": None, "on" if is_on else "off": taken}
  if is_on and remat:
    without = costs.Traced(setting.with_network(remat=False), at_a_time).flat
    found["off"] = activations.peak_of(without, with_results=False)
  elif not is_on and any(operation.block for operation in traced.flat.operations):
    policy = REMAT_POLICIES[config.network.get("remat_policy", "blocks")]
    found["on"] = activations.peak_of(with_remat(traced.flat, policy), with_results=False)
  an_image = max(taken / at_a_time, 1)
  group = method.objective.needs.group
  stored = tree_bytes(setting.state) + (
    tree_bytes(setting.teacher_params) if method.objective.needs.stages else 0
  )
  result = Plan(
    accelerator=accelerator,
    count=count,
    data=data,
    fsdp=fsdp,
    parameters=parameter_count(setting.state.params),
    flops={part: value / at_a_time for part, value in traced.by_part().items()},
    memory={**fixed, "activations": taken},
    activations=found,
    usable=usable,
    batch_size=config.batch_size,
    accumulation=config.accumulation,
    at_a_time=at_a_time,
    most_at_a_time=max(int((usable - sum(fixed.values())) / an_image) // group * group, 0),
    steps=method.num_steps,
    rate=accelerator.rate(config.network.get("dtype", "float32"), config.matmul_precision),
    mfu=mfu,
    checkpoint=stored,
    suggestions=(),
    assumed=setting.assumed,
  )
  if result.fits:
    return result
  is_float32 = config.network.get("dtype", "bfloat16") == "float32"
  return dataclasses.replace(result, suggestions=tuple(suggest(result, holds, is_on, is_float32)))


def suggest(plan: Plan, holds: Held, remat: bool, float32: bool) -> Iterator[str]:
  """Yield what would make a run fit, one change each, with what a device then holds.

  Args:
    plan: One that does not fit.
    holds: What it holds.
    remat: Whether it has remat.
    float32: Whether its network computes in float32 and could in bfloat16.
  """
  fixed, taken = sum(plan.memory.values()) - plan.memory["activations"], plan.memory["activations"]
  options: list[tuple[str, float]] = []
  share = plan.batch_size // plan.count
  for parts in range(plan.accumulation + 1, share + 1):
    if share % parts == 0 and share // parts <= plan.most_at_a_time:
      options.append((f"config.accumulation={parts}", fixed + taken * share / parts / plan.at_a_time))
      break
  rematerialised = plan.activations["on"]
  if not remat and rematerialised is not None:
    options.append(("config.network.remat=True", fixed + rematerialised))
  if float32:
    options.append(("config.network.dtype=bfloat16", fixed + taken / 2))
  for fsdp in range(plan.fsdp + 1, plan.count + 1):
    if plan.count % fsdp == 0:
      bytes_: float = sum(holds.on_a_device(fsdp).values()) + taken
      if bytes_ <= plan.usable or fsdp == plan.count:
        options.append((f"config.mesh.fsdp={fsdp}", bytes_))
        break
  if plan.most_at_a_time:
    batch = plan.most_at_a_time * plan.count * plan.accumulation
    options.append((f"config.batch_size={batch}", fixed + taken * plan.most_at_a_time / plan.at_a_time))
  fitting = [(change, bytes_) for change, bytes_ in options if bytes_ <= plan.usable]
  for change, bytes_ in fitting:
    yield f"{change}: {bytes_ / 1e9:.1f} GB a device"
  if not fitting:
    changes = ", ".join(change for change, _ in options if "batch_size" not in change)
    yield f"none of {changes or 'the usual changes'} is enough alone: several of them, or more devices"


def check_count(count: int) -> None:
  """Check a number of devices.

  Raises:
    UserError: It is not positive.
  """
  if count < 1:
    raise UserError("count", count, "1 or more devices")
