"""The tensors of a TorchScript file (`torch.jit.save`), by its modules' names; its code is not looked at.

One of the audited readers (SECURITY.md). Such a file is a zip of torch.save whose pickle holds the modules as
objects of classes that the code in the file defines: here they are inert, whatever they are called.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cm_jax.convert.readers.pickles import Bounded, Inert, Refused
from cm_jax.convert.readers.torch_files import TENSORS, Tensor, read_zip

_CODE = ("code/", "constants.pkl", "constants/", ".data/", "extra/")  # what a file holds beside its modules
_MAX_DEPTH = 50  # of modules in modules


class _Modules(Mapping[str, Callable[..., Any]]):
  """What the pickle may name: tensors, lists of plain values, and classes of the file's own."""

  def __contains__(self, name: object) -> bool:
    return isinstance(name, str) and (name in _KNOWN or name.startswith("__torch__."))

  def __getitem__(self, name: str) -> Callable[..., Any]:
    return _KNOWN[name] if name in _KNOWN else lambda *arguments: Inert(name, arguments)

  def __iter__(self) -> Iterator[str]:
    return iter(_KNOWN)

  def __len__(self) -> int:
    return len(_KNOWN)


def _items(items: Any = ()) -> Any:
  if not isinstance(items, (list, tuple)):
    raise Refused("lists of plain values")
  return items


_KNOWN: Mapping[str, Callable[..., Any]] = {
  **TENSORS,
  **{f"torch.jit._pickle.build_{kind}list": _items for kind in ("int", "double", "bool", "tensor")},
  "torch.jit._pickle.restore_type_tag": lambda value, *_: value,
  "torch.device": lambda *_: Inert("torch.device"),
}


def read_torchscript(file: Bounded) -> dict[str, np.ndarray]:
  """Return the tensors of a TorchScript file by name, as `state_dict()` would: "layers.conv.weight".

  A module that is held in two places is listed where it is found first.

  Raises:
    Refused: It is no such file, is not whole, or names what modules do not need.
    zipfile.BadZipFile, ValueError, LookupError, TypeError: It is damaged.
  """
  root = read_zip(file, _Modules(), _CODE)
  if not isinstance(root, Inert):
    raise Refused("a TorchScript file: a module")
  return {name: tensor.array() for name, tensor in _tensors(root, "", set(), 0)}


def _tensors(module: Inert, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
  if id(module.state) in seen:  # a file could list one state under many modules
    return
  if depth > _MAX_DEPTH:
    raise Refused(f"modules in modules, at most {_MAX_DEPTH} deep")
  seen.add(id(module.state))
  for name, value in module.state.items():
    if isinstance(value, Tensor):
      yield f"{prefix}{name}", value
    elif isinstance(value, Inert):
      yield from _tensors(value, f"{prefix}{name}.", seen, depth + 1)


def is_torchscript(names: list[str]) -> bool:
  """Say by the names in a zip whether it is a TorchScript file.

  >>> is_torchscript(["archive/data.pkl", "archive/constants.pkl"]), is_torchscript(["archive/data.pkl"])
  (True, False)
  """
  return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names)
