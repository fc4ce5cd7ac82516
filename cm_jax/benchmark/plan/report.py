"""A plan as a person reads it."""

from collections.abc import Iterator

from cm_jax.benchmark.plan.estimate import Plan


def lines(plan: Plan) -> Iterator[str]:
  """Yield a plan, a line each."""
  each = sum(plan.flops.values())
  parts = [f"{part} {value / 1e9:.4g}" for part, value in plan.flops.items() if value]
  yield f"devices: {plan.count} x {plan.accelerator.name} (data {plan.data}, fsdp {plan.fsdp})"
  yield f"parameters: {plan.parameters:,}"
  yield f"GFLOP an image in training: {each / 1e9:.4g} ({', '.join(parts)})"
  usable = f"{gigabytes(plan.usable)} usable of {gigabytes(plan.accelerator.memory)}"
  yield f"memory a device: {total(plan)} of {usable}"
  for kind, value in plan.memory.items():
    if value:
      yield f"  {kind}: {gigabytes(value)}" + (
        f" of {plan.at_a_time} images at a time" if kind == "activations" else ""
      )
  off, on = plan.activations["off"], plan.activations["on"]
  if off is not None and on is not None:
    yield f"  activations without remat: {gigabytes(off)}, with: {gigabytes(on)}"
  yield fitting(plan)
  yield from (f"  would fit: {line}" for line in plan.suggestions)
  yield f"checkpoint: {gigabytes(plan.checkpoint)} each, before compression"
  yield duration(plan)
  yield from (f"assumed: {line}" for line in plan.assumed)
  yield f"peak rate and memory: {plan.accelerator.source}"


def fitting(plan: Plan) -> str:
  """Say whether it fits, and what would at most."""
  most = plan.most_at_a_time * plan.count * plan.accumulation
  if plan.fits:
    return (
      f"fits: batch {plan.batch_size:,}; at most {most:,} ({plan.most_at_a_time:,} images at a time a device)"
    )
  found = f"at most {most:,} would" if most else "no batch would"
  return f"does not fit: batch {plan.batch_size:,} on {plan.count} devices; {found}"


def duration(plan: Plan) -> str:
  """Say how long it takes."""
  images = plan.steps * plan.batch_size
  return (
    f"time: {images:,} images in {plan.steps:,} steps: {_long(plan.hours)}, {plan.hours * plan.count:,.4g} "
    f"device-hours at {plan.mfu:.0%} of {plan.rate / 1e12:,.4g} TFLOP/s (without evaluation and compiling)"
  )


def _long(hours: float) -> str:
  if hours >= 48:
    return f"{hours / 24:.3g} days"
  return f"{hours:.3g} hours" if hours >= 2 else f"{hours * 60:.3g} minutes"


def total(plan: Plan) -> str:
  """Return what a device holds."""
  return gigabytes(sum(plan.memory.values()))


def gigabytes(size: float) -> str:
  """Write a size.

  >>> gigabytes(80e9), gigabytes(2_500_000), gigabytes(0)
  ('80.00 GB', '2.50 MB', '0.00 MB')
  """
  return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def short(plan: Plan) -> list[str]:
  """Return what `train` says of it first."""
  kinds = ", ".join(f"{kind} {gigabytes(value)}" for kind, value in plan.memory.items() if value)
  each = sum(plan.flops.values())
  held = f"{total(plan)} of {gigabytes(plan.usable)} ({kinds})"
  said = [f"plan: {each / 1e9:.4g} GFLOP an image; memory a device: {held}"]
  if not plan.fits:
    said += [f"  {fitting(plan)}", *(f"  would fit: {line}" for line in plan.suggestions)]
  return said
