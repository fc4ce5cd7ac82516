"""Which keys of two configs say that they are of one run; whether a run's config.json is what was trained."""

from collections.abc import Mapping
from typing import Any

from cm_jax import config as config_lib
from cm_jax.assembly.complete import current
from cm_jax.errors import UserError

# Durations that follow the run's length where they are 0: two ways to say the same.
CLOCK = ("decay_images", "total_images", "stage_images", "last_stage_images", "last_factor")

# Where data and teacher lie: they may move, since what they hold is compared (`training.resume`).
PLACES = ("data.source", "teacher.path", "teacher.step", "teacher.average")


def check_unchanged(stored: Mapping[str, Any], saved: Mapping[str, Any], where: str, file: str) -> None:
  """Check that a run's config.json is the config that a checkpoint was trained with.

  Args:
    stored: config.json, of any age.
    saved: The config in the checkpoint.
    where: The checkpoint.
    file: That config.json.

  Raises:
    UserError: Names the first key that was changed, and what it was.
  """
  flat_stored, flat_saved = (flat(config_lib.content(current(side))) for side in (stored, saved))
  for key in differing_keys(flat_stored, flat_saved):
    if key.split(".")[-1] not in ("num_images", *CLOCK):
      expected = f"{flat_saved.get(key)!r}, as {where} was trained with: the file was changed since"
      raise UserError(f"{file}: {key}", flat_stored.get(key), expected)


def differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
  """Return the keys in which two flat configs differ, sorted, but for `PLACES`."""
  keys = sorted((ours.keys() | theirs.keys()) - set(PLACES))
  return [key for key in keys if ours.get(key) != theirs.get(key)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Return nested sections as one, keys joined with "."."""
  found: dict[str, Any] = {}
  for key, value in tree.items():
    found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
  return found
