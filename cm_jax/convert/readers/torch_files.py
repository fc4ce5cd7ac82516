"""The two containers of torch.save, the zip and the older stream of pickles, as numpy arrays; no torch.

One of the audited readers (SECURITY.md): what a file claims is checked against its size before it is read.
"""

import dataclasses
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cm_jax.convert.readers.pickles import Allowed, Bounded, Budget, Inert, Named, Refused, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES: Mapping[str, np.dtype] = {
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
  "torch.DoubleStorage": np.dtype("<f8"),
  "torch.LongStorage": np.dtype("<i8"),
  "torch.IntStorage": np.dtype("<i4"),
  "torch.ShortStorage": np.dtype("<i2"),
  "torch.CharStorage": np.dtype("i1"),
  "torch.ByteStorage": np.dtype("u1"),
  "torch.BoolStorage": np.dtype("?"),
}
_MAX_RANK = 8


@dataclasses.dataclass(eq=False)
class Storage:
  """A run of numbers; `data` arrives after the pickle that mentions it."""

  dtype: np.dtype
  numel: int
  data: np.ndarray | None = None

  def fill(self, raw: bytes) -> None:
    if len(raw) != self.numel * self.dtype.itemsize:
      raise Refused(
        f"a whole file: {len(raw)} bytes where {self.numel} numbers of type {self.dtype.name} are announced"
      )
    self.data = np.frombuffer(raw, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A view of a storage."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]

  def array(self) -> np.ndarray:
    """Return the numbers, without a copy.

    Raises:
      Refused: The view reaches outside its storage, or repeats numbers (which would let a small file claim a
        huge array).
    """
    data = self.storage.data
    if data is None:
      raise Refused("a whole file: a tensor's numbers are missing")
    size = math.prod(self.shape)
    last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
    if size and (self.offset < 0 or last >= data.size or size > data.size or min((*self.stride, 0)) < 0):
      raise Refused(f"a whole file: a tensor of shape {self.shape} in a storage of {data.size} numbers")
    if not size:
      return np.zeros(self.shape, data.dtype)
    strides = [step * data.itemsize for step in self.stride]
    return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides, writeable=False)


def read_zip(file: Bounded, allowed: Allowed | None = None, skipped: Sequence[str] = ()) -> Any:
  """Return what a zip of torch.save (torch >= 1.6) holds; every record's CRC is verified.

  Args:
    file: The zip.
    allowed: What its pickle may name; `TENSORS` by default.
    skipped: Beginnings of names in it that are not looked at, such as "code/".

  Raises:
    Refused: It is compressed, claims more than its size, or names what weights do not need.
    zipfile.BadZipFile, ValueError, LookupError, TypeError: It is damaged.
  """
  with zipfile.ZipFile(file) as archive:
    inside = lambda name: name.partition("/")[2]
    infos = [info for info in archive.infolist() if not inside(info.filename).startswith(tuple(skipped))]
    records = {info.filename: info for info in infos}
    if len(records) != len(infos):
      raise Refused("a zip that holds each name once")
    if sum(info.file_size for info in records.values()) > file.size:
      raise Refused(f"a whole file: its records claim more than its {file.size} bytes")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in records.values()):
      raise Refused("a zip as torch.save writes it, neither compressed nor encrypted")
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
      raise Refused("a zip written by torch.save, with one data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "byteorder" in records and archive.read(folder + "byteorder") != b"little":
      raise Refused("numbers in little-endian order")
    storages: dict[str, Storage] = {}
    stream = Bounded(io.BytesIO(archive.read(pickles[0])), file.budget)
    content = read_pickle(stream, allowed or TENSORS, lambda key: _storage(key, storages))
    for key, storage in storages.items():
      storage.fill(archive.read(f"{folder}data/{key}"))
    used = {pickles[0], *(f"{folder}data/{key}" for key in storages)}
    for name in records.keys() - used:
      archive.read(name)  # a wrong CRC anywhere means a damaged file
  return content


def read_legacy(file: Bounded) -> Any:
  """Return what a file of torch.save before 1.6 holds: pickles one after another, then the numbers.

  Raises:
    Refused: It is not such a file, is cut short, or names what weights do not need.
    ValueError, LookupError, TypeError: It is damaged.
  """
  if read_pickle(file, {}) != MAGIC or read_pickle(file, {}) != _PROTOCOL:
    raise Refused("a file written by torch.save")
  system = read_pickle(file, {})
  if not isinstance(system, dict) or system.get("little_endian") is not True:
    raise Refused("numbers in little-endian order")
  storages: dict[str, Storage] = {}
  content = read_pickle(file, TENSORS, lambda key: _storage(key, storages))
  keys = read_pickle(file, {})
  if (
    not isinstance(keys, list)
    or not all(isinstance(key, str) for key in keys)
    or sorted(keys) != sorted(storages)
  ):
    raise Refused("a whole file: the numbers stored are not those the tensors need")
  for key in keys:
    numel = int.from_bytes(file.take(8), "little", signed=True)
    if numel != storages[key].numel:
      raise Refused(f"a whole file: {numel} numbers where {storages[key].numel} are announced")
    storages[key].fill(file.take(numel * storages[key].dtype.itemsize))
  return content


def is_legacy(head: bytes) -> bool:
  """Say whether a file starts with the magic number of torch.save before 1.6, a pickled long integer."""
  return head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")


def load_from_bytes(budget: Budget, raw: Any) -> Storage:
  """Return the storage in what `torch.storage._load_from_bytes` takes, a whole torch.save file: same rules.

  Args:
    budget: Of the file that the bytes are part of.
    raw: The bytes.

  Raises:
    Refused: It holds anything else.
  """
  if not isinstance(raw, bytes):
    raise TypeError("no bytes")
  stream = Bounded(io.BytesIO(raw), budget)
  storage = read_legacy(stream) if is_legacy(raw[:16]) else read_zip(stream)
  if not isinstance(storage, Storage):
    raise Refused("a storage in the bytes of a tensor")
  return storage


def _storage(key: Any, storages: dict[str, Storage]) -> Storage:
  kind, dtype, name, _location, numel, *views = key
  are_known = kind == "storage" and isinstance(name, str) and isinstance(numel, int)
  if not are_known or numel < 0 or any(view is not None for view in views):
    raise Refused("a persistent id that stands for a storage")
  if not isinstance(dtype, Named) or dtype.name not in _DTYPES:
    raise Refused(f"a storage of type {', '.join(_DTYPES)}")
  storage = storages.setdefault(name, Storage(_DTYPES[dtype.name], numel))
  if (storage.dtype, storage.numel) != (_DTYPES[dtype.name], numel):
    raise Refused("a whole file: one storage with two sizes")
  return storage


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_ignored: Any) -> Tensor:
  numbers = (offset, *shape, *stride)
  if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > _MAX_RANK:
    raise Refused("a tensor of at most 8 dimensions over a storage")
  if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in numbers):
    raise Refused("a tensor whose shape, strides and offset are sizes")
  return Tensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: Any, *_ignored: Any) -> Tensor:
  if not isinstance(data, Tensor):
    raise Refused("a parameter made of a tensor")
  return data


def ordered_dict(pairs: Any = ()) -> dict:
  """Return `collections.OrderedDict(pairs)` as a plain dict: empty, or of pairs with string keys."""
  is_item = lambda pair: isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
  if not all(map(is_item, pairs)):
    raise Refused("dicts with string keys")
  return dict(pairs)


def _size(size: Any = ()) -> tuple:
  if not isinstance(size, (list, tuple)) or len(size) > _MAX_RANK:
    raise Refused(f"sizes of at most {_MAX_RANK} dimensions")
  return tuple(size)


TENSORS: Allowed = {
  "collections.OrderedDict": ordered_dict,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  "torch.Size": _size,
  **dict.fromkeys(_DTYPES, lambda *_: Inert("storage type")),
}
