"""The one place where a config becomes components.

`assemble(config, image_shape, num_classes) -> Method` needs no file, no device and no data; `build(config) ->
Experiment` places it; `load_model(path) -> Model` takes weights from a run or a weights folder.
"""

from cm_jax.assembly.complete import complete
from cm_jax.assembly.components import call, construct, steps
from cm_jax.assembly.experiment import build
from cm_jax.assembly.method import assemble
from cm_jax.assembly.models import build_network, load_model, model_of

__all__ = [
  "assemble",
  "build",
  "build_network",
  "call",
  "complete",
  "construct",
  "load_model",
  "model_of",
  "steps",
]
