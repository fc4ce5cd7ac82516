"""Read the msgpack files of flax.serialization as nested dicts of numpy arrays.

One of the audited readers (SECURITY.md): every length is bounded by the file's own size.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm_jax.convert.readers.pickles import Refused

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax.serialization's extension codes
_NAMES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
_DTYPES = {np.dtype(name).name: np.dtype(name) for name in _NAMES} | {"bfloat16": np.dtype(jnp.bfloat16)}
_MAX_MAP = 100_000
_MAX_PARTS = 500_000  # maps, lists and extensions: an empty map is one byte of a file, and 64 in memory


def read_msgpack(data: bytes) -> Any:
  """Return what `flax.serialization.to_bytes` wrote.

  >>> import flax.serialization
  >>> read_msgpack(flax.serialization.to_bytes({"a": np.ones(2, np.float32)}))
  {'a': array([1., 1.], dtype=float32)}

  Raises:
    Refused: An extension or type that flax does not write, or a name twice.
    ValueError, TypeError: It is damaged.
  """
  import msgpack

  # an announced list is allocated at once, hence the small bound on lists; maps grow as they are read
  limits = {"max_array_len": 4096, "max_map_len": _MAX_MAP, "max_str_len": 10_000}
  limits |= {"max_bin_len": len(data), "max_ext_len": len(data)}
  count = itertools.count()

  def counted(build: Callable[..., Any]) -> Callable[..., Any]:
    def hook(*given: Any) -> Any:
      if next(count) >= _MAX_PARTS:
        raise Refused(f"a file of at most {_MAX_PARTS} maps, lists and arrays")
      return build(*given)

    return hook

  hooks = {"ext_hook": counted(_extension), "object_pairs_hook": counted(_unique), "list_hook": counted(list)}
  try:
    return msgpack.unpackb(data, raw=False, strict_map_key=True, **hooks, **limits)
  except (msgpack.exceptions.UnpackException, msgpack.exceptions.ExtraData) as error:
    raise Refused(f"a whole msgpack file ({type(error).__name__})") from None


def _extension(code: int, data: bytes) -> Any:
  import msgpack

  if code not in (_NDARRAY, _SCALAR):
    known = "no complex numbers" if code == _COMPLEX else "arrays and numbers, no other msgpack extension"
    raise Refused(known)
  limits = {"max_array_len": 16, "max_map_len": 0, "max_ext_len": 0}
  shape, name, raw = msgpack.unpackb(data, raw=False, strict_map_key=True, **limits)
  return _array(shape, name, raw) if code == _NDARRAY else _array(shape, name, raw)[()]


def _array(shape: Sequence[int], name: str | bytes, raw: bytes) -> np.ndarray:
  dtype = _DTYPES.get(name.decode() if isinstance(name, bytes) else name)
  if dtype is None or not isinstance(raw, bytes):
    raise Refused(f"arrays of type {', '.join(_DTYPES)}")
  if not all(isinstance(n, int) and n >= 0 for n in shape) or len(raw) != math.prod(shape) * dtype.itemsize:
    raise Refused(f"a whole file: {len(raw)} bytes for an array of another size")
  return np.frombuffer(raw, dtype).reshape(shape)


def _unique(pairs: list[tuple[Any, Any]]) -> dict:
  built = dict(pairs)
  if len(built) != len(pairs):
    raise Refused("each name once in every dict")
  return built
