"""What the backward pass computes again instead of having kept it."""

from collections.abc import Callable
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


def block_of(network: Any, kind: type[nn.Module]) -> Callable[..., Any]:
  """Return a kind of block as a network's fields `remat` and `remat_policy` want it: as it is, or computed
  again in the backward pass."""
  return nn.remat(kind, policy=REMAT_POLICIES[network.remat_policy]) if network.remat else kind
