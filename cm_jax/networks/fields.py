"""What the fields of every network must satisfy; each check raises a UserError that names the field."""

from collections.abc import Sequence
from typing import Any

from cm_jax.errors import UserError, one_of
from cm_jax.networks.kernels import KERNELS
from cm_jax.networks.remat import REMAT_POLICIES

MAX_SIZE = 1 << 16  # of a width, a side, a number of classes
MAX_BLOCKS = 128  # of all levels together: to work out the shapes of more takes minutes
DTYPES = ("float32", "bfloat16", "float64")


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
  """Raise a UserError unless `value` is one of `choices`."""
  if value not in choices:
    raise UserError(field, value, one_of(choices, value))


def check_network(network: Any) -> None:
  """Raise a UserError unless the fields that all networks share are in range."""
  check_positive(network, "img_resolution", "in_channels", "out_channels")
  for field in ("label_dim", "augment_dim"):
    value = getattr(network, field)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE:
      raise UserError(field, value, f"a whole number from 0 to {MAX_SIZE}")
  check_choice("dtype", network.dtype, DTYPES)
  check_choice("kernels", network.kernels, KERNELS)
  check_choice("remat_policy", network.remat_policy, tuple(REMAT_POLICIES))


def check_positive(network: object, *fields: str) -> None:
  """Raise a UserError unless every named field is a positive integer or a non-empty tuple of them."""
  for field in fields:
    value = getattr(network, field)
    values = value if isinstance(value, tuple) else (value,)
    several = " or several" if isinstance(value, tuple) else ""
    if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
      raise UserError(field, value, f"a positive whole number{several}")
    if max(values) > MAX_SIZE:
      raise UserError(field, value, f"a positive whole number{several}, at most {MAX_SIZE}")


def check_rate(network: object, *fields: str) -> None:
  """Raise a UserError unless every named field of `network` is in [0, 1)."""
  for field in fields:
    value = getattr(network, field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
      raise UserError(field, value, "a probability, 0 <= rate < 1")


def make_tuples(network: Any, *fields: str) -> None:
  """Turn sequences (a config from JSON has lists) into tuples; raise a UserError for anything else."""
  for field in fields:
    value = getattr(network, field)
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise UserError(field, value, "a sequence, such as (1, 2)")
    object.__setattr__(network, field, tuple(value))


def check_absent(network: Any, *fields: str) -> None:
  """Raise a UserError for a width that is not 0 of a label that the architecture does not take."""
  for field in fields:
    if getattr(network, field):
      raise UserError(field, getattr(network, field), f"0: {type(network).__name__} takes no such label")


def check_unet(network: Any, *positive: str, tuples: Sequence[str] = ()) -> None:
  """Make the fields that U-Nets share tuples where they are sequences, and check their range.

  Args:
    network: A module with EDM's field names.
    positive: Further fields that must be positive whole numbers.
    tuples: Further fields that are sequences.

  Raises:
    UserError: A field out of range.
  """
  check_network(network)
  make_tuples(network, "channel_mult", "attn_resolutions", *tuples)
  check_positive(network, "model_channels", "channel_mult", "num_blocks", *positive)
  check_rate(network, "dropout", "label_dropout")
  check_halves(network, "channel_mult", len(network.channel_mult) - 1)
  check_plan(network, "model_channels", "channel_mult", "num_blocks")


def check_plan(network: Any, width: str, multipliers: str, blocks: str) -> None:
  """Raise a UserError unless the widest level and the number of blocks are of a network that can be.

  Args:
    network: A module.
    width: The field of its channels.
    multipliers: Of a tuple, one for each level.
    blocks: Of the number of blocks in each.
  """
  levels = getattr(network, multipliers)
  if getattr(network, width) * max(levels) > MAX_SIZE:
    raise UserError(width, getattr(network, width), f"at most {MAX_SIZE} channels, times {max(levels)}")
  if getattr(network, blocks) * len(levels) > MAX_BLOCKS:
    expected = f"at most {MAX_BLOCKS} blocks in the {len(levels)} levels together"
    raise UserError(blocks, getattr(network, blocks), expected)


def check_halves(network: Any, field: str, times: int) -> None:
  """Raise a UserError naming `field` unless the image halves `times` times."""
  if network.img_resolution % 2**times:
    expected = f"fewer levels: {network.img_resolution} pixels do not halve {times} times"
    raise UserError(field, getattr(network, field), expected)


def dropout_at(network: Any, resolution: int) -> float:
  """Return the dropout of a block at this resolution: none above `dropres`, unless that is 0."""
  return network.dropout if not network.dropres or resolution <= network.dropres else 0.0


def check_taps(network: Any, field: str = "resample_filter") -> None:
  """Raise a UserError unless the filter halves and doubles an image: an even number of taps, with a sum."""
  taps = getattr(network, field)
  if not taps or len(taps) % 2 or not all(isinstance(tap, (int, float)) for tap in taps) or not sum(taps):
    raise UserError(field, taps, "an even number of taps with a sum other than 0")
