"""Features of one's own on disk: `features.safetensors`, and what is known of them in `features.json`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import DAMAGE, UserError
from cm_jax.storage import bounded, whole
from cm_jax.storage.weights import flatten, unflatten
from cm_jax.types import Params

_WEIGHTS, _INFO = "features.safetensors", "features.json"
_EXPECTED = "features written by cm_jax"


def packed(params: Params) -> bytes:
  """Return parameters as they are stored: float32, by name."""
  import safetensors.numpy

  flat = sorted(flatten(params).items())
  return safetensors.numpy.save({name: np.asarray(value, np.float32) for name, value in flat})


def sha256(params: Params) -> str:
  """Return the sha256 of parameters, as stored: `features_hash` in records."""
  return hashlib.sha256(packed(params)).hexdigest()


def write(folder: epath.PathLike, params: Params, info: Mapping[str, Any]) -> None:
  """Write the weights and, last, what is known of them: the pair is whole if the second is there.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  place = whole.place(folder)
  (place / _INFO).unlink(missing_ok=True)
  whole.write(place / _WEIGHTS, packed(params))
  whole.write(place / _INFO, json.dumps({**info, "sha256": sha256(params)}, indent=2) + "\n")


def read(folder: epath.PathLike) -> tuple[Params, dict[str, Any]]:
  """Return the parameters and what is known of them.

  Raises:
    UserError: Missing, incomplete or altered files.
  """
  import safetensors.numpy

  place = whole.place(folder)
  if not (place / _INFO).exists():
    expected = "what train-features writes: it makes them from digits, or from labelled images of yours"
    raise UserError(str(place / _INFO), "no such file", expected)
  info = bounded.read_object(place / _INFO, _EXPECTED)
  try:
    weights = whole.read(place / _WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != info.pop("sha256"):
      raise UserError(str(folder), _WEIGHTS, f"the weights whose sha256 {_INFO} states")
    return unflatten(safetensors.numpy.load(weights)), info
  except (OSError, *DAMAGE, safetensors.SafetensorError) as error:
    raise damaged(folder, error) from error


def damaged(folder: epath.PathLike, error: Exception) -> UserError:
  """Return what is said of a folder whose content made an error."""
  return UserError(str(epath.Path(folder) / _INFO), f"{type(error).__name__}: {error}", _EXPECTED)
