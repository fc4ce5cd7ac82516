"""The blocks of a network: what the backward pass computes again instead of having kept it, and which of them
are traced."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

# Their results are dear to compute and small beside what lies between them: norms, activations, dropout.
PRODUCTS = ("dot_general", "conv_general_dilated", "convolve", "weight_gradient")


def keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
  """Say whether the result of a primitive is kept: that of a matrix product or convolution is."""
  return primitive.name in PRODUCTS


# What is kept of the inside of a block, as `policy` of jax.checkpoint.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
  "blocks": None,  # nothing: least memory, one more forward pass
  "products": keep_products,  # results of convolutions and matrix products: what is cheap is computed again
}


BLOCK = "core_fn"  # how Flax calls in a trace what `alike_once` has made of a block
_ALIKE: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar("alike", default=None)


@contextlib.contextmanager
def alike_once() -> Iterator[None]:
  """Trace blocks that are alike once for all of them, each a call of `BLOCK`, in what is traced inside.

  That is for its shapes and its operations: its random numbers are others.
  """
  token = _ALIKE.set({})
  try:
    yield
  finally:
    _ALIKE.reset(token)


def block_of(network: Any, kind: type[nn.Module]) -> Callable[..., Any]:
  """Return a kind of block as a network's fields `remat` and `remat_policy` want it: as it is, or computed
  again in the backward pass."""
  wanted = kind, network.remat, network.remat_policy
  traced = _ALIKE.get()
  if traced is None:
    return _block(*wanted)
  if wanted not in traced:
    traced[wanted] = nn.jit(_block(*wanted))
  return traced[wanted]


def _block(kind: type[nn.Module], remat: bool, policy: str) -> Callable[..., Any]:
  return nn.remat(kind, policy=REMAT_POLICIES[policy]) if remat else kind
