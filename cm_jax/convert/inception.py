"""Inception-2015's published weights into one file of ours; see `networks.inception`."""

from collections.abc import Mapping

import numpy as np

_COUNTER = ".num_batches_tracked"  # of batch norms while training


def stored_layout(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return torch-fidelity's state dict in our layout, float32, what only training needs left out.

  >>> stored_layout({"fc.weight": np.zeros((1008, 2048))})["fc.weight"].shape
  (2048, 1008)
  """
  turned = lambda array: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  return {
    name: np.ascontiguousarray(turned(np.asarray(array, np.float32)))
    for name, array in theirs.items()
    if not name.endswith(_COUNTER)
  }
