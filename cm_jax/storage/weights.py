"""Weights folders: the parameters in `weights.safetensors`, and what is needed to use them in `model.json`.

Parameters are float32, their names joined with "/".
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.models import Model
from cm_jax.storage import bounded, digests, whole
from cm_jax.storage.model_json import FORMAT, MODEL, NOISE, WEIGHTS, check_format, checked_info
from cm_jax.storage.model_json import INFO_KEYS as INFO_KEYS  # part of this module's contract
from cm_jax.types import NoiseRange


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flatten nested dicts to one level, names joined with "/".

  >>> flatten({"net": {"enc.0": {"weight": 1}}})
  {'net/enc.0/weight': 1}

  Raises:
    UserError: A name that is empty, not a string, or holds a "/".
  """
  flat: dict[str, Any] = {}
  for name, value in params.items():
    if not isinstance(name, str) or not name or "/" in name:
      raise UserError(f"parameter name under {prefix or 'the root'!r}", name, 'a string without "/"')
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{prefix}{name}/"))
    else:
      flat[prefix + name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Undo `flatten`.

  >>> unflatten({"net/enc.0/weight": 1})
  {'net': {'enc.0': {'weight': 1}}}

  Raises:
    UserError: A name that is both a leaf and a branch.
  """
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *branches, leaf = name.split("/")
    node = tree
    for branch in branches:
      node = node.setdefault(branch, {})
      if not isinstance(node, dict):
        raise UserError("parameter name", name, f"no parameter called {branch!r} above it")
    if leaf in node:
      raise UserError("parameter name", name, "each name once")
    node[leaf] = value
  return tree


def is_weights_folder(path: epath.PathLike) -> bool:
  """Say whether a path is a folder that `save_weights` wrote."""
  return all((whole.place(path) / name).exists() for name in (WEIGHTS, MODEL))


def check_target(folder: epath.PathLike) -> epath.Path:
  """Return the folder as a path if `save_weights` may write it: new, empty, or itself a weights folder.

  Raises:
    UserError: It is a file, or holds anything but weights.
  """
  target = whole.absolute(folder)
  is_link = whole.is_local(target) and os.path.islink(target)
  if target.is_dir() and not is_link:
    foreign = sorted({entry.name for entry in target.iterdir()} - {WEIGHTS, MODEL})
    if foreign:
      expected = "an empty folder, a weights folder to replace, or a path that does not exist"
      raise UserError(str(target), foreign[0], expected)
  elif target.exists() or is_link:
    raise UserError(str(target), "a file or link", "a folder, or a path that does not exist")
  whole.check_writable("out", target)
  return target


def info_of(model: Model) -> dict[str, Any]:
  """Return what `model.json` says of a model; who writes it adds `source_sha256` and `licence`."""
  return {
    "kind": model.kind,
    "network": dict(model.network),
    "precond": dict(model.precond),
    **dataclasses.asdict(model.noise),
    "num_classes": model.num_classes,
    "class_names": list(model.class_names),
    "image_shape": list(model.image_shape),
    "sigmas_by_nfe": {int(nfe): list(levels) for nfe, levels in model.sigmas_by_nfe.items()},
    "matmul_precision": model.matmul_precision,
    "guidable": model.guidable,
    "clip": model.clip,
    "renoise": model.renoise,
  }


def noise_of(info: Mapping[str, Any]) -> NoiseRange:
  """Return the noise range that a model.json states; an old one has no rho.

  >>> noise_of({"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.5}).rho
  7.0
  """
  return NoiseRange(**{key: info[key] for key in NOISE if key in info})


def save_weights(folder: epath.PathLike, params: Mapping[str, Any], info: Mapping[str, Any]) -> epath.Path:
  """Write a weights folder: all of it or nothing.

  Args:
    folder: New, empty, or a weights folder to replace.
    params: `{"net": ...}`, nested dicts of arrays; stored as float32.
    info: `INFO_KEYS`, and `OPTIONAL_INFO_KEYS` where known; plain JSON types (tuples allowed). `info_of`
      makes most of it. Whatever its format, the folder is of today's; `weights_sha256` is that of what is
      written.

  Returns:
    The folder, as an absolute path.

  Raises:
    UserError: The folder holds something else, a key of `info` is missing or unknown, a parameter is not a
      float array, the disk is full.
  """
  target = check_target(folder)
  check_format(info.get("format", FORMAT), "info")
  checked = checked_info({**info, "format": FORMAT}, "info")
  if "net" not in params:
    raise UserError("params", sorted(params), 'a dict with the key "net"')
  arrays = {name: _float32(name, value) for name, value in flatten(params).items()}
  with whole.folder(target, last=MODEL) as new:
    save_arrays(new / WEIGHTS, arrays)
    written = {**checked, "weights_sha256": digests.of_file(new / WEIGHTS)}
    whole.write(new / MODEL, json.dumps(written, indent=2, sort_keys=True) + "\n")
  return target


def load_weights(folder: epath.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """Read a weights folder.

  Returns:
    `(params, info)`: nested dicts of float32 numpy arrays, and `model.json` with `image_shape` a tuple,
    `sigmas_by_nfe` keyed by int, and `kind` None where a folder of format 1 does not say it.

  Raises:
    UserError: A file is missing, damaged (`weights_sha256` is not that of the weights), or of a newer format.
  """
  path = whole.place(folder)
  if not is_weights_folder(path):
    raise UserError("weights folder", str(path), f"a folder with {WEIGHTS} and {MODEL}")
  checked = load_info(path)
  arrays = load_arrays(path / WEIGHTS, "weights folder", checked.get("weights_sha256"))
  params = unflatten({name: _float32(name, value) for name, value in arrays.items()})
  if not isinstance(params.setdefault("net", {}), dict):
    raise UserError(str(path / WEIGHTS), "net", "a tree of parameters")
  return params, checked


def load_info(folder: epath.PathLike) -> dict[str, Any]:
  """Read the model.json of a weights folder, as `load_weights` does.

  Raises:
    UserError: It is missing, damaged, or of a newer format.
  """
  path = whole.place(folder)
  return checked_info(_read_info(path), str(path / MODEL))


def update_info(folder: epath.PathLike, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
  """Replace the model.json of a weights folder by `change` of it; what it says besides stays, its format too.

  Raises:
    UserError: It is damaged, or would be wrong.
  """
  file = whole.place(folder) / MODEL
  info = change(_read_info(whole.place(folder)))
  checked_info(info, str(file))
  whole.write(file, json.dumps(info, indent=2, sort_keys=True) + "\n")


def save_arrays(
  path: epath.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None
) -> None:
  """Write a safetensors file: all of it or nothing.

  Args:
    path: The file.
    arrays: By name.
    about: Its metadata; several keys are written in any order, one always gives the same bytes.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  import safetensors.numpy

  with whole.writing(path) as temporary:
    try:
      safetensors.numpy.save_file(dict(arrays), temporary, dict(about) if about else None)
    except safetensors.SafetensorError as error:  # what it raises for a full disk
      raise OSError(str(error)) from error


def load_arrays(path: epath.PathLike, field: str, sha256: str | None = None) -> dict[str, np.ndarray]:
  """Read a safetensors file; `sha256` is that of the file as it was written, where known.

  Raises:
    UserError: Names `field`: the file is missing, damaged or no safetensors file.
  """
  import safetensors.numpy

  try:
    with whole.reading(path) as local:
      if sha256 is not None and digests.of_file(local) != sha256:
        raise ValueError(f"it is not what was written, whose sha256 is {sha256[:12]}...")
      return safetensors.numpy.load_file(local)
  except (OSError, ValueError, KeyError, struct.error, safetensors.SafetensorError) as error:
    expected = f"a readable safetensors file ({type(error).__name__}: {error})"
    raise UserError(field, str(path), expected) from None


def check_arrays(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
  """Check names and shapes of a set of weights.

  Args:
    arrays: By name.
    wanted: The shape of every one.
    where: What they are of, for the error.

  Raises:
    UserError: Names the first array that is missing, left over, of another shape, or not finite.

  >>> check_arrays({"a": np.zeros(3)}, {"a": (2,)}, "weights")
  Traceback (most recent call last):
  cm_jax.errors.UserError: weights: a = (3,): expected shape (2,)
  """
  for name in sorted(wanted.keys() | arrays.keys()):
    have = arrays[name].shape if name in arrays else "missing"
    if have != wanted.get(name):
      expected = f"shape {wanted[name]}" if name in wanted else "no such array"
      raise UserError(f"{where}: {name}", have, expected)
    if not math.isfinite(float(np.abs(arrays[name]).max())):
      raise UserError(f"{where}: {name}", "not finite", "finite numbers")


def _read_info(path: epath.Path) -> dict[str, Any]:
  return bounded.read_object(path / MODEL, "a JSON object, as it was written with the weights")


def _float32(name: str, value: Any) -> np.ndarray:
  array = np.asarray(value)
  # bfloat16 has numpy kind "V": only its name tells it from a structured type
  if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
    raise UserError(name, str(array.dtype), "a float array")
  return np.ascontiguousarray(array, np.float32).reshape(array.shape)
