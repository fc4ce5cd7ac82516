"""`cm_jax.assembly` under the name it had before: `from cm_jax.build import load_model` goes on to work.

`cm_jax.build` is also the function; the module can be called as that, since an import puts it in its place.
"""

import sys
import types

from cm_jax import assembly
from cm_jax.assembly import build, build_network, call, construct, load_model, steps
from cm_jax.models import Experiment

__all__ = ["build", "build_network", "call", "construct", "load_model", "steps"]


class _Build(types.ModuleType):
  def __call__(self, *config: object, **options: object) -> Experiment:
    return assembly.build(*config, **options)  # type: ignore[arg-type]


sys.modules[__name__].__class__ = _Build
