"""Pickles of numpy arrays in dicts, such as EDM2's reference statistics ({metric: {"mu", "sigma"}}).

One of the audited readers (SECURITY.md): an array is made of the bytes that the file holds, and of no more.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cm_jax.convert.readers.pickles import Allowed, Bounded, Inert, Refused, read_pickle

_DTYPES = {"f8": "<f8", "f4": "<f4", "i8": "<i8", "i4": "<i4", "u1": "u1"}
_MAX_DEPTH = 4  # of dicts in dicts
_MAX_RANK = 8


def read_arrays(file: Bounded) -> dict[str, Any]:
  """Return a pickled dict of arrays, or of dicts of them; numbers and texts beside them stay.

  Raises:
    Refused: It is something else, or names what arrays do not need.
    ValueError, LookupError, TypeError, AttributeError: It is damaged.

  >>> import io, pickle
  >>> content = pickle.dumps({"fid": {"mu": np.array([1.0, 2.0])}})
  >>> read_arrays(Bounded(io.BytesIO(content)))["fid"]["mu"].tolist()
  [1.0, 2.0]
  """
  content = read_pickle(file, _ALLOWED)
  if not isinstance(content, dict):
    raise Refused("a pickled dict of arrays")
  return _made(content, 0)


def _made(value: Any, depth: int) -> Any:
  if isinstance(value, dict):
    if depth >= _MAX_DEPTH:
      raise Refused(f"dicts in dicts, {_MAX_DEPTH} deep at most")
    return {str(key): _made(item, depth + 1) for key, item in value.items()}
  if isinstance(value, Inert) and value.name == "numpy.ndarray":
    return _array(value)
  if value is None or isinstance(value, (str, int, float)):
    return value
  raise Refused("dicts of arrays, numbers and texts")


def _array(stored: Inert) -> np.ndarray:
  if stored.args:  # protocol 5: made of a buffer at once
    raw, dtype, shape, order = stored.args
    by_columns = order == "F"
  else:
    _version, shape, dtype, by_columns, raw = stored.content
  sizes = shape if isinstance(shape, tuple) else (shape,)
  if len(sizes) > _MAX_RANK or not all(type(size) is int and size >= 0 for size in sizes):
    raise Refused(f"arrays of at most {_MAX_RANK} dimensions")
  kind = _kind(dtype)
  if not isinstance(raw, (bytes, bytearray)) or len(raw) != math.prod(sizes) * kind.itemsize:
    raise Refused(f"a whole file: an array of shape {sizes} is not its bytes")
  return np.frombuffer(raw, kind).reshape(sizes, order="F" if by_columns else "C")


def _kind(dtype: Any) -> np.dtype:
  named = isinstance(dtype, Inert) and dtype.name == "numpy.dtype" and len(dtype.args) > 0
  if not named or dtype.args[0] not in _DTYPES:
    raise Refused(f"arrays of type {', '.join(_DTYPES)}")
  order = dtype.content[1] if len(dtype.content) > 1 else "<"
  return np.dtype(_DTYPES[dtype.args[0]]).newbyteorder(">" if order == ">" else "<")


def _scalar(dtype: Any, raw: Any) -> Any:
  if not isinstance(raw, bytes):
    raise Refused("numbers as numpy stores them")
  return np.frombuffer(raw, _kind(dtype), count=1)[0].item()


def _latin1(text: Any, encoding: Any) -> bytes:
  if not isinstance(text, str) or encoding != "latin1":
    raise Refused("bytes as protocol 2 stores them")
  return text.encode("latin1")


_ARRAYS: Mapping[str, Any] = {
  "multiarray._reconstruct": lambda *_: Inert("numpy.ndarray"),
  "multiarray.scalar": _scalar,
  "numeric._frombuffer": lambda *args: Inert("numpy.ndarray", args),
}
_ALLOWED: Allowed = {
  **{f"numpy.{core}.{name}": build for core in ("core", "_core") for name, build in _ARRAYS.items()},
  "numpy.dtype": lambda *args: Inert("numpy.dtype", args),
  "numpy.ndarray": lambda *args: Inert("numpy.ndarray class", args),
  "_codecs.encode": _latin1,
  "__builtin__.bytes": lambda: b"",  # as protocol 2 stores none
}
