"""What was planned of papers' rows: device-hours at an assumed share of the peak rate, not measurements."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from etils import epath

from cm_jax.errors import UserError
from cm_jax.storage import bounded

_EXPECTED = "a list of plans as launch/plans.py writes it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
  """What `plan` said of one config.

  Attributes:
    config: The file's name, with its variant behind a colon.
    command: What said so.
    device, count, mfu: For which devices, and the share of their peak rate that was assumed.
    batch_size, accumulation: Images a step, micro-batches in it.
    device_hours: Of the whole run.
    memory_gb, usable_gb: What a device holds, and what of it arrays can take.
    fits: Whether the former is within the latter.
  """

  config: str
  command: str
  device: str
  count: int
  mfu: float
  batch_size: int
  accumulation: int
  device_hours: float
  memory_gb: float
  usable_gb: float
  fits: bool


def read_plans(path: epath.PathLike) -> list[Planned]:
  """Return the plans of a file, none if there is no file.

  Raises:
    UserError: The file is something else, has two plans of a config, or plans for different devices.
  """
  if not epath.Path(path).exists():
    return []
  entries = bounded.read_json(path, _EXPECTED)
  if not isinstance(entries, list):
    raise UserError(str(path), type(entries).__name__, _EXPECTED)
  plans = [_checked(f"{path}: {number}", entry) for number, entry in enumerate(entries)]
  names = [plan.config for plan in plans]
  for name in names:
    if names.count(name) > 1:
      raise UserError(str(path), name, "one plan a config")
  if len({title(plan) for plan in plans}) > 1:
    raise UserError(str(path), "plans for several kinds of devices", "all for the same, at the same mfu")
  return plans


def _checked(where: str, entry: Any) -> Planned:
  try:
    plan = Planned(**entry)
  except TypeError as error:
    raise UserError(where, str(error), _EXPECTED) from error
  kinds = {field.name: field.type for field in dataclasses.fields(Planned)}
  for name, kind in kinds.items():
    value = entry[name]
    is_right = type(value) in (int, float) and math.isfinite(value) if kind is float else type(value) is kind
    if not is_right:
      raise UserError(f"{where}: {name}", value, str(kind))
  return plan


def title(plan: Planned) -> str:
  """Return the heading of a column of device-hours.

  >>> common = dict(command="", batch_size=8, accumulation=1, memory_gb=3.0, usable_gb=60.0, fits=True)
  >>> title(Planned(config="x.py", device="h100", count=1, mfu=0.35, device_hours=2, **common))
  'device-hours (1 h100, planned at MFU 0.35)'
  """
  return f"device-hours ({plan.count} {plan.device}, planned at MFU {plan.mfu:g})"


def hours(plans: Iterable[Planned | None]) -> str:
  """Return a cell of that column: three digits a plan.

  >>> common = dict(command="", batch_size=8, accumulation=1, memory_gb=3.0, usable_gb=60.0, fits=True)
  >>> one = Planned(config="x.py", device="h100", count=1, mfu=0.35, device_hours=12345.6, **common)
  >>> hours([one, dataclasses.replace(one, device_hours=1.957), None])
  '12,300, 1.96, not planned'
  """
  return ", ".join(
    "not planned" if plan is None else f"{float(f'{plan.device_hours:.3g}'):,.10g}" for plan in plans
  )
