"""The base of every layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn


class Module(nn.Module):
  """A flax module that takes a parameter it is given as it is.

  Flax traces the initialiser of every parameter each time a network is applied, to compare shapes, which is
  half of what tracing a network takes. Here shapes are compared once, where weights are read.
  """

  @nn.nowrap
  def param(self, name: str, init_fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the parameter `name`, drawn by init_fn(key, *arguments) if there is none."""
    if self.has_variable("params", name):
      return self.get_variable("params", name)
    return super().param(name, init_fn, *arguments, **options)
