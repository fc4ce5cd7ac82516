"""Write checkpoints as the peers do, without torch and their classes: files for tests to read and break."""

import io
import itertools
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cm_jax.convert.readers.torch_files import MAGIC

STORAGES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}


class Name:
  """A global name to write, whatever it is."""

  def __init__(self, module: str, name: str):
    self.module, self.name = module, name


class Call:
  """The result of calling a name while unpickling."""

  def __init__(self, function: Name, *args: Any):
    self.function, self.args = function, args


class Built(Call):
  """An instance made by `cls.__new__` with a state."""

  def __init__(self, cls: Name, state: Any):
    super().__init__(cls)
    self.state = state


class Stored:
  """A storage, written as a persistent id."""

  def __init__(self, key: str, array: np.ndarray):
    self.key, self.array = key, array


class Writer(pickle._Pickler):
  """A pickler that writes names and calls without looking them up."""

  dispatch = dict(pickle._Pickler.dispatch)

  def persistent_id(self, value: Any) -> Any:
    if isinstance(value, Stored):
      kind = Name("torch", STORAGES[value.array.dtype.name])
      return ("storage", kind, value.key, "cpu", value.array.size, *([None] if self.legacy else []))
    return None

  def _name(self, value: Name) -> None:
    self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

  def _call(self, value: Call) -> None:
    self.save(value.function)
    self.save(tuple(value.args))
    self.write(pickle.REDUCE)
    self.memoize(value)

  def _built(self, value: Built) -> None:
    self.save(value.function)
    self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
    self.memoize(value)
    self.save(value.state)
    self.write(pickle.BUILD)

  dispatch[Name], dispatch[Call], dispatch[Built] = _name, _call, _built


def dumps(value: Any, protocol: int = 2, legacy: bool = False) -> bytes:
  """Pickle a value in which `Name`, `Call`, `Built` and `Stored` may occur."""
  buffer = io.BytesIO()
  writer = Writer(buffer, protocol)
  writer.legacy = legacy
  writer.dump(value)
  return buffer.getvalue()


ORDERED_DICT = Name("collections", "OrderedDict")


def tensor(
  storage: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0
) -> Call:
  """Return a tensor over a storage, contiguous by default."""
  if strides is None:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
  return Call(
    Name("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, Call(ORDERED_DICT)
  )


def state_dict(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Call], list[Stored]]:
  """Return what torch.save pickles for a state dict, and its storages."""
  storages = [Stored(str(i), array) for i, array in enumerate(arrays.values())]
  return {
    name: tensor(storage, storage.array.shape) for name, storage in zip(arrays, storages, strict=True)
  }, storages


def torch_zip(content: Any, storages: list[Stored], folder: str = "archive", **changes: Any) -> bytes:
  """Return a zip as torch.save writes it; `changes` replace or add records."""
  buffer = io.BytesIO()
  records = {"data.pkl": dumps(content), "byteorder": b"little", "version": b"3\n"}
  records |= {f"data/{storage.key}": storage.array.tobytes() for storage in storages}
  with zipfile.ZipFile(buffer, "w", changes.pop("compression", zipfile.ZIP_STORED)) as archive:
    for name, data in (records | changes).items():
      archive.writestr(f"{folder}/{name}", data)
  return buffer.getvalue()


def torch_legacy(content: Any, storages: list[Stored]) -> bytes:
  """Return the older stream of torch.save."""
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
  parts = [
    dumps(MAGIC),
    dumps(1001),
    dumps(system),
    dumps(content, legacy=True),
    dumps([storage.key for storage in storages]),
  ]
  return b"".join(parts) + b"".join(
    struct.pack("<q", storage.array.size) + storage.array.tobytes() for storage in storages
  )


def parameter(array: np.ndarray) -> Call:
  """Return a parameter as NVIDIA's snapshots hold it: its storage is a whole legacy file in bytes."""
  storage = Stored("94782748828496", array)
  loaded = Call(Name("torch.storage", "_load_from_bytes"), torch_legacy(storage, [storage]))
  return Call(
    Name("torch._utils", "_rebuild_parameter"), tensor(loaded, array.shape), True, Call(ORDERED_DICT)
  )


def persistent(cls: str, state: dict[str, Any], source: str = "raise RuntimeError") -> Call:
  """Return an object stored with the source of its class."""
  meta = {"type": "class", "version": 6, "module_src": source, "class_name": cls, "state": state}
  return Call(Name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


def module(
  arrays: Mapping[str, np.ndarray], make: Callable[[dict], Any] | None = None, **attributes: Any
) -> Any:
  """Return a torch module with these parameters; a dot in a name is a submodule."""
  children: dict[str, dict[str, np.ndarray]] = {}
  own = {}
  for name, array in arrays.items():
    child, _, rest = name.partition(".")
    if rest:
      children.setdefault(child, {})[rest] = array
    else:
      own[name] = parameter(array)
  state = {
    "_parameters": own,
    "_buffers": {},
    "_non_persistent_buffers_set": set(),
    "_modules": {name: module(inner) for name, inner in children.items()},
    **attributes,
  }
  return make(state) if make else Built(Name("torch.nn.modules.container", "ModuleDict"), state)


def snapshot(
  cls: str,
  kwargs: dict[str, Any],
  arrays: Mapping[str, np.ndarray],
  source: str = "raise RuntimeError",
  **more: Any,
) -> bytes:
  """Return a snapshot of EDM's training loop."""
  network = module(arrays, lambda state: persistent(cls, state, source), _init_args=(), _init_kwargs=kwargs)
  return dumps({"ema": network, **more}, protocol=4)


def deep(depth: int, opcode: bytes = pickle.TUPLE1) -> bytes:
  """Return a pickle of a value nested so deep that naive walks of it overflow."""
  return b"\x80\x04" + pickle.EMPTY_TUPLE + opcode * depth + pickle.STOP


def numbered(shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, np.ndarray]:
  """Return small distinct arrays of these shapes."""
  counter = itertools.count(1)
  return {name: np.full(shape, next(counter) / 64, dtype) for name, shape in shapes.items()}
