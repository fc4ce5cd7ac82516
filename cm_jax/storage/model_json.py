"""What a model.json says: its keys, and what they may be."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from cm_jax.errors import UserError, one_of
from cm_jax.types import KINDS, PRECISIONS, RENOISE, NoiseRange

FORMAT = 2  # of model.json; 1 had no kind
NOISE = tuple(field.name for field in dataclasses.fields(NoiseRange))
INFO_KEYS = (
  *("kind", "network", "precond", "sigma_min", "sigma_max", "sigma_data"),
  *("num_classes", "image_shape", "sigmas_by_nfe", "source_sha256", "licence"),
)
OPTIONAL_INFO_KEYS = (
  *("format", "rho", "source", "peer", "weights_sha256", "class_names"),
  *("matmul_precision", "guidable", "clip", "renoise"),
)
WEIGHTS, MODEL = "weights.safetensors", "model.json"


def check_format(number: Any, where: str) -> None:
  """Check the format of a model.json.

  Raises:
    UserError: A newer one, or none.
  """
  if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= FORMAT:
    raise UserError(f"{where}: format", number, f"1 to {FORMAT}, which this version of cm_jax reads")


def levels_by_nfe(stored: Mapping[Any, Any]) -> dict[int, tuple[float, ...]]:
  """Return noise levels by number of network evaluations, as a JSON file has them.

  >>> levels_by_nfe({"2": [80, 0.8]})
  {2: (80.0, 0.8)}

  Raises:
    ValueError, TypeError, AttributeError, OverflowError: They are none.
  """
  found = {int(nfe): tuple(float(level) for level in levels) for nfe, levels in stored.items()}
  for nfe, levels in found.items():
    if nfe < 1 or not levels or not all(0 < level < math.inf for level in levels):
      raise ValueError(f"sigmas_by_nfe {nfe}: {list(levels)} are no noise levels")
  return found


def checked_info(info: Any, where: str) -> dict[str, Any]:
  """Return what a model.json says, with the types it has in Python, `kind` None where an old one has none.

  Raises:
    UserError: A key that is missing, unknown or of the wrong kind; `where` is the file.
  """
  if not isinstance(info, Mapping):
    raise UserError(where, type(info).__name__, "a JSON object")
  number = info.get("format")
  check_format(number, where)
  checked = {"kind": None, **info} if number == 1 else dict(info)
  missing = [key for key in INFO_KEYS if key not in checked]
  unknown = sorted(set(checked) - {*INFO_KEYS, *OPTIONAL_INFO_KEYS})
  if missing or unknown:
    raise UserError(where, f"missing {missing}, unknown {unknown}", f"the keys {', '.join(INFO_KEYS)}")
  if checked["kind"] not in KINDS and (number != 1 or checked["kind"] is not None):
    raise UserError(f"{where}: kind", checked["kind"], one_of(KINDS, checked["kind"]))
  try:
    NoiseRange(**{key: checked[key] for key in NOISE if key in checked})
  except UserError as error:
    raise error.named(f"{where}: {error.field}") from None
  if (value := checked.get("matmul_precision", "default")) not in PRECISIONS:
    raise UserError(f"{where}: matmul_precision", value, one_of(PRECISIONS, str(value)))
  if checked.get("guidable") not in (True, False, None):
    raise UserError(f"{where}: guidable", checked["guidable"], "true, false or null")
  if not isinstance(checked.get("clip"), (bool, type(None))):
    raise UserError(f"{where}: clip", checked["clip"], "true, false or null")
  if checked.get("renoise") not in (None, *RENOISE):
    raise UserError(f"{where}: renoise", checked["renoise"], f"{' or '.join(RENOISE)}, or null")
  digest = checked.get("weights_sha256")
  if digest is not None and not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
    raise UserError(f"{where}: weights_sha256", digest, f"the sha256 of {WEIGHTS} in 64 hex digits")
  for key in ("network", "precond"):
    if not isinstance(checked[key], Mapping) or "name" not in checked[key]:
      raise UserError(f"{where}: {key}", checked[key], 'a config section with a "name"')
  try:
    checked["image_shape"] = tuple(int(size) for size in checked["image_shape"])
    tuned = levels_by_nfe(checked["sigmas_by_nfe"])
    checked["sigmas_by_nfe"] = {nfe: list(levels) for nfe, levels in tuned.items()}
    checked["num_classes"] = int(checked["num_classes"])
  except (TypeError, ValueError, AttributeError, OverflowError) as error:
    expected = "image_shape [H, W, C], num_classes an int, sigmas_by_nfe {nfe: [sigma, ...]}"
    raise UserError(where, str(error), expected) from None
  if len(checked["image_shape"]) != 3 or min(checked["image_shape"]) < 1 or checked["num_classes"] < 0:
    shapes = (checked["image_shape"], checked["num_classes"])
    raise UserError(f"{where}: image_shape, num_classes", shapes, "[H, W, C] and 0 or more")
  names = checked.get("class_names", [])
  if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
    raise UserError(f"{where}: class_names", str(names)[:60], "the names of the classes, or []")
  if names and len(names) != checked["num_classes"]:
    expected = f"{checked['num_classes']} names, one for every class, or []"
    raise UserError(f"{where}: class_names", f"{len(names)} names", expected)
  return checked
