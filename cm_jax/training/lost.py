"""What ends a process that lost JAX's coordination service: one line of ours, not jaxlib's stack trace.

The service lives in the first process of a job. Where that is killed, a thread of jaxlib ends the others at
once, with 22 lines and SIGABRT. It takes a callback for that, but (0.10.2) cannot call it: its absl::Status
is no Python object, and std::bad_cast, in a thread of its own, ends in std::terminate. So what the C++
runtime calls there is ours, too.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from cm_jax import coordination

_CALLBACK = "missed_heartbeat_callback"
_BAD_CAST = b"St8bad_cast"
_kept: list[Any] = []  # what C++ calls must not be collected


@contextlib.contextmanager
def told_by(end: Callable[[], None]) -> Iterator[None]:
  """Let `end` end the process where a client that is made in the block loses its service.

  Args:
    end: Called in a thread of jaxlib; it must not return.
  """
  distributed = coordination.module()  # the callback has no public name
  try:
    library = distributed._jax
    make = library.get_distributed_runtime_client
    takes_one = _CALLBACK in (make.__doc__ or "")
  except AttributeError:  # another JAX
    takes_one = False
  if not takes_one:  # it ends its own way
    yield
    return
  _instead_of_terminate(end)
  library.get_distributed_runtime_client = lambda *given, **named: make(
    *given, **named, **{_CALLBACK: lambda status: end()}
  )
  try:
    yield
  finally:
    library.get_distributed_runtime_client = make


def _instead_of_terminate(end: Callable[[], None]) -> None:
  """Call `end` where std::bad_cast is caught by nobody; what was called before, where anything else is."""
  with contextlib.suppress(OSError, AttributeError):  # another C++ runtime than GCC's
    runtime = ctypes.CDLL("libstdc++.so.6")
    set_handler, current = runtime._ZSt13set_terminatePFvvE, runtime.__cxa_current_exception_type
    handler = ctypes.CFUNCTYPE(None)
    set_handler.restype = current.restype = ctypes.c_void_p

    @handler
    def terminated() -> None:
      kind = current()  # a std::type_info: its virtual table, its name
      name = ctypes.c_char_p.from_address(kind + ctypes.sizeof(ctypes.c_void_p)).value if kind else None
      if name == _BAD_CAST:
        end()
      handler(before)()

    before = set_handler(terminated)
    _kept.append(terminated)
