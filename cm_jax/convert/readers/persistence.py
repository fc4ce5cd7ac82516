"""The pickles of NVIDIA's training code (EDM, EDM2) and its forks (ECT): modules stored with their source.

One of the audited readers (SECURITY.md). The source is never looked at: a stored module is a class name, the
arguments it was made with, and a tree of tensors.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cm_jax.convert.readers.pickles import Allowed, Bounded, Inert, Nested, Refused, read_pickle
from cm_jax.convert.readers.torch_files import TENSORS, Tensor, load_from_bytes, ordered_dict

_SCALARS = ("f8", "f4", "i8", "i4", "b1")
_MAX_DEPTH = 16
_MAX_ENTRIES = 200_000  # of all modules together; a full-size network has a few thousand
_MAX_NAME = 200


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """The averaged network of a snapshot: the class of its wrapper, what that was made with, all its arrays."""

  cls: str
  kwargs: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]


def read_snapshot(file: Bounded) -> Snapshot:
  """Return the network under the key "ema".

  Raises:
    Refused: There is none, or the file names what a network does not need.
    ValueError, LookupError, TypeError, AttributeError: It is damaged.
  """
  content = read_pickle(file, ALLOWED)
  net = content.get("ema") if isinstance(content, dict) else None
  if not isinstance(net, Inert) or not isinstance(net.state.get("_modules"), dict):
    raise Refused('a training snapshot: a pickled dict with a network under "ema"')
  if net.state.get("_init_args"):
    raise Refused("a network made with named arguments only")
  arrays = dict(_Walk().arrays(net))
  if not arrays:
    raise Refused(f"parameters in the stored {net.name[:50]}")
  return Snapshot(net.name, net.state.get("_init_kwargs", {}), arrays)


class _Walk:
  """One walk through a tree of modules: each once, and what several share is not gone through for each."""

  def __init__(self) -> None:
    self._seen: set[int] = set()
    self._left = _MAX_ENTRIES

  def arrays(self, module: Inert, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the parameters and buffers of a module and of those in it, by name.

    Raises:
      Refused: It is no such tree.
    """
    if depth > _MAX_DEPTH or id(module) in self._seen:
      raise Refused("a tree of modules, each in one place")
    self._seen.add(id(module))
    transient = module.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
      for name, tensor in self._entries(module, kind):
        if isinstance(tensor, Tensor) and name not in transient:
          yield f"{prefix}{name}", tensor.array()
        elif tensor is not None and name not in transient:
          raise Refused(f"a tensor as {prefix[:100]}{name[:100]}")
    for name, child in self._entries(module, "_modules"):
      if isinstance(child, Inert):
        yield from self.arrays(child, f"{prefix}{name}.", depth + 1)

  def _entries(self, module: Inert, kind: str) -> Iterator[tuple[str, Any]]:
    for name, value in module.state.get(kind, {}).items():
      self._left -= 1
      if self._left < 0 or not isinstance(name, str) or len(name) > _MAX_NAME:
        raise Refused(f"at most {_MAX_ENTRIES} tensors and modules, with names as code has them")
      yield name, value


def _persistent_object(meta: Any) -> Inert:
  are_known = isinstance(meta["class_name"], str) and isinstance(meta["state"], dict)
  if meta["type"] != "class" or not are_known:
    raise Refused("stored objects that have a class and a state")
  return Inert(meta["class_name"], (), meta["state"])


def _scalar(dtype: Any, raw: Any) -> Any:
  if (
    not isinstance(dtype, Inert)
    or dtype.args[:1] not in [(name,) for name in _SCALARS]
    or not isinstance(raw, bytes)
  ):
    raise Refused(f"numpy scalars of type {', '.join(_SCALARS)}")
  return np.frombuffer(raw, np.dtype(dtype.args[0]).newbyteorder("<"), count=1)[0].item()


def _bound_method(owner: Any, _name: Any) -> Inert:
  # ECT's loss stores one of its own methods; nothing is looked up, the result does nothing
  if not isinstance(owner, Inert):
    raise Refused("getattr on a stored object only")
  return Inert("method")


def _inert(name: str):
  return lambda *args: Inert(name, args)


_NUMPY = {
  "multiarray.scalar": _scalar,
  "multiarray._reconstruct": lambda *_: Inert("numpy.ndarray"),
}
ALLOWED: Allowed = {
  **TENSORS,
  "torch.storage._load_from_bytes": Nested(load_from_bytes),
  "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
  "torch.device": _inert("torch.device"),
  **{
    f"torch.nn.modules.container.{name}": _inert(name) for name in ("ModuleDict", "ModuleList", "Sequential")
  },
  **{f"numpy.{core}.{name}": build for core in ("core", "_core") for name, build in _NUMPY.items()},
  "numpy.dtype": _inert("numpy.dtype"),
  "numpy.ndarray": _inert("numpy.ndarray"),
  "builtins.getattr": _bound_method,
  "dnnlib.util.EasyDict": ordered_dict,
}
