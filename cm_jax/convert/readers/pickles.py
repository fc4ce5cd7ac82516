"""Read pickles as inert data: an interpreter of the opcodes that imports and calls nothing a file names.

One of the audited readers (SECURITY.md). `pickle.load` runs whatever a file asks for. Here a file may only
name what is in an allow-list, and each name stands for a function of this package that builds arrays, dicts
or `Inert` stand-ins. What a file can make this process allocate is bounded by the file's own size: lengths
are checked against what is left of it before anything is read, and one `Budget` a file, shared by the pickles
in its pickles, limits the number of opcodes and what is handed to functions, however often they are called.
"""

import dataclasses
import io
import os
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

Allowed = Mapping[str, Callable[..., Any]]

# a full-size EDM network is 30 thousand opcodes; two million of the costliest ones are about 300 MB
MAX_OPCODES = 2_000_000
_SLACK = 4 << 20  # bytes, for the shapes of small files
_CONTAINERS = (list, tuple, dict, set, frozenset)
_ITEM = 100  # bytes, at most, that a function makes of an item
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


class Refused(Exception):
  """A file is not read. The text says what was expected of it, as in `UserError(..., expected)`."""


@dataclasses.dataclass(frozen=True)
class Named:
  """A name that the file mentions and the allow-list knows; `build` is ours, never Python's."""

  name: str
  build: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Nested:
  """What a name builds that reads a pickle in the pickle: `function(budget, *arguments)`."""

  function: Callable[..., Any]

  def __call__(self, budget: "Budget", *arguments: Any) -> Any:
    return self.function(budget, *arguments)


@dataclasses.dataclass(eq=False)
class Inert:
  """Stands for an object of the file: what it was called and what was stored in it. It does nothing.

  `state` is what it has by name, `content` what it has in order, as numpy's arrays and types.
  """

  name: str
  args: tuple = ()
  state: dict[str, Any] = dataclasses.field(default_factory=dict)
  content: tuple = ()


class Budget:
  """What reading one file may cost; a genuine one hands each of its bytes to a function about once.

  Args:
    size: Of the file, in bytes.
  """

  def __init__(self, size: int):
    self._opcodes, self._handed = MAX_OPCODES, 2 * size + _SLACK

  def opcode(self) -> None:
    """Count an opcode, of whichever pickle of the file.

    Raises:
      Refused: One too many.
    """
    self._opcodes -= 1
    if self._opcodes < 0:
      raise Refused(f"a file of at most {MAX_OPCODES} opcodes, those of the pickles in its pickles included")

  def hand(self, arguments: tuple) -> None:
    """Count what a function is called with: it may make as much of it.

    Raises:
      Refused: More than the file holds.
    """
    texts = (len(value) for value in arguments if isinstance(value, (bytes, str)))
    items = (len(value) for value in arguments if isinstance(value, _CONTAINERS))
    self._handed -= sum(texts) + _ITEM * sum(items)
    if self._handed < 0:
      raise Refused("a file that uses what it holds once, not one payload again and again")


class Bounded:
  """A seekable binary file that never reads more than is left: an absurd length allocates nothing.

  Args:
    file: From which to read.
    budget: Of the file that it is part of; None: it is a file of its own.
  """

  def __init__(self, file: BinaryIO, budget: Budget | None = None):
    self._file = file
    here = file.tell()
    self.size = file.seek(0, os.SEEK_END)
    self.budget = budget or Budget(self.size)
    file.seek(here)
    self.tell, self.seek, self.readline = file.tell, file.seek, file.readline

  def read(self, n: int = -1) -> bytes:
    left = max(self.size - self.tell(), 0)
    return self._file.read(left if n is None or n < 0 else min(n, left))

  def take(self, n: int) -> bytes:
    """Read exactly n bytes.

    Raises:
      Refused: Fewer are left.
    """
    left = self.size - self.tell()
    if not 0 <= n <= left:
      raise Refused(f"a whole file: {n} bytes are announced where {left} are left")
    return self._file.read(n)

  def seekable(self) -> bool:
    return True


def read_pickle(
  data: bytes | Bounded, allowed: Allowed, persistent: Callable[[Any], Any] | None = None
) -> Any:
  """Return what one pickle describes; a stream is left just behind it.

  >>> import pickle
  >>> read_pickle(pickle.dumps({"a": [1, 2.5, "x"]}), {})
  {'a': [1, 2.5, 'x']}

  Args:
    data: The pickle, or a stream that stands at its start.
    allowed: What each global name that may occur builds, called with the arguments that the file gives; a
      `Nested` with the file's budget before them.
    persistent: What a persistent id builds; None if none may occur.

  Raises:
    Refused: It names something else, or is not a pickle that weights need.
    ValueError, LookupError, TypeError, AttributeError: It is damaged.
  """
  stream = Bounded(io.BytesIO(data)) if isinstance(data, bytes) else data
  machine = _Machine(allowed, persistent, stream.budget)
  # genops asks of a file no more than read, readline and tell
  for opcode, argument, _ in pickletools.genops(cast(BinaryIO, stream)):
    stream.budget.opcode()
    machine.step(opcode.name, argument)
  return machine.pop()


class _Machine:
  """The stack and memo of the pickle protocol, over inert values."""

  def __init__(self, allowed: Allowed, persistent: Callable[[Any], Any] | None, budget: Budget):
    self.allowed, self.persistent, self.budget = allowed, persistent, budget
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def pop(self) -> Any:
    value = self.stack.pop()
    if value is _MARK:
      raise ValueError("a mark where a value is due")
    return value

  def pop_mark(self) -> list[Any]:
    for index in range(len(self.stack) - 1, -1, -1):
      if self.stack[index] is _MARK:
        values = self.stack[index + 1 :]
        del self.stack[index:]
        return values
    raise ValueError("no mark on the stack")

  def step(self, op: str, argument: Any) -> None:
    push = self.stack.append
    match op:
      case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
        push(argument)
      case (
        "STRING"
        | "BINSTRING"
        | "SHORT_BINSTRING"
        | "UNICODE"
        | "BINUNICODE"
        | "SHORT_BINUNICODE"
        | "BINUNICODE8"
      ):
        push(argument)
      case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
        push(argument)
      case "PROTO" | "FRAME" | "STOP":
        pass
      case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
        push(_CONSTANTS[op])
      case "PUT" | "BINPUT" | "LONG_BINPUT":
        self.memo[argument] = self.stack[-1]
      case "MEMOIZE":
        self.memo[len(self.memo)] = self.stack[-1]
      case "GET" | "BINGET" | "LONG_BINGET":
        push(self.memo[argument])
      case "MARK":
        push(_MARK)
      case "POP":
        self.stack.pop()
      case "POP_MARK":
        self.pop_mark()
      case "DUP":
        push(self.stack[-1])
      case "TUPLE":
        push(tuple(self.pop_mark()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        push(tuple([self.pop() for _ in range(int(op[-1]))][::-1]))
      case "EMPTY_LIST":
        push([])
      case "LIST":
        push(self.pop_mark())
      case "EMPTY_DICT":
        push({})
      case "DICT":
        push(_with_items({}, self.pop_mark()))
      case "EMPTY_SET":
        push(set())
      case "FROZENSET":
        push(frozenset(map(_key, self.pop_mark())))
      case "APPEND":
        value = self.pop()
        _typed(self.stack[-1], list).append(value)
      case "APPENDS":
        values = self.pop_mark()
        _typed(self.stack[-1], list).extend(values)
      case "ADDITEMS":
        values = self.pop_mark()
        _typed(self.stack[-1], set).update(map(_key, values))
      case "SETITEM":
        value, key = self.pop(), self.pop()
        _with_items(self.stack[-1], [key, value])
      case "SETITEMS":
        values = self.pop_mark()
        _with_items(self.stack[-1], values)
      case "GLOBAL":
        push(self.named(*argument.split(" ", 1)))
      case "STACK_GLOBAL":
        name, module = self.pop(), self.pop()
        push(self.named(module, name))
      case "REDUCE" | "NEWOBJ":
        arguments, function = _typed(self.pop(), tuple), _typed(self.pop(), Named)
        self.budget.hand(arguments)
        nested = (self.budget,) if isinstance(function.build, Nested) else ()
        push(function.build(*nested, *arguments))
      case "BUILD":
        state = self.pop()
        _set_state(self.stack[-1], state)
      case "BINPERSID" if self.persistent:
        push(self.persistent(self.pop()))
      # extension codes, out-of-band buffers, INST, OBJ, NEWOBJ_EX, persistent ids where they have no use
      case _:
        raise Refused(f"a pickle without the opcode {op}, which weights do not need")

  def named(self, module: Any, name: Any) -> Named:
    full = f"{_typed(module, str)}.{_typed(name, str)}"
    if full not in self.allowed:
      raise Refused(f"a file that names only arrays and networks, not {full[:100]}")
    return Named(full, self.allowed[full])


def _typed(value: Any, kind: type) -> Any:
  if type(value) is not kind:
    raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
  return value


def _key(value: Any) -> Any:
  # the hash of a deeply nested tuple overflows the C stack, and chosen numbers can be made to collide
  if isinstance(value, (str, bytes)) or (isinstance(value, int) and abs(value) < 1 << 31):
    return value
  raise TypeError(f"{type(value).__name__} as a key")


def _with_items(target: Any, flat: list[Any]) -> dict:
  if len(flat) % 2:
    raise ValueError("a key without a value")
  _typed(target, dict).update((_key(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True))
  return target


def _set_state(target: Any, state: Any) -> None:
  if isinstance(target, Inert) and isinstance(state, dict):
    target.state = state
  elif isinstance(target, Inert) and isinstance(state, tuple):
    target.content = state
  elif not isinstance(target, (dict, Inert)):  # that of a dict (torch.save's `_metadata`) holds no weights
    raise TypeError(f"{type(target).__name__} cannot have state")
