"""Are samples copies? A picture of each beside the training images that are nearest to it."""

import numpy as np
from etils import epath

from cm_jax.errors import UserError, one_of
from cm_jax.evaluation.features import Extractor
from cm_jax.storage.pictures import save_grid

ROWS, COLUMNS = 12, 6  # samples in a picture, and what is beside each
BY = ("pixels", "features")
_AT_ONCE = 1 << 22  # numbers of training images that are compared at a time


def check_by(by: str | None) -> None:
  """Check what neighbours are to be found by.

  Raises:
    UserError: Not one of `BY`.
  """
  if by is not None and by not in BY:
    raise UserError("nearest", by, one_of(BY, by))


def nearest(samples: np.ndarray, known: np.ndarray, count: int, block: int | None = None) -> np.ndarray:
  """Return which of what is known is nearest to each sample, by L2 distance: int [N, count], nearest first.

  Exact in float64, by sums of squared differences; of equal distances the lower number comes first.

  Args:
    samples: [N, ...].
    known: [M, ...] of the same shape behind, M >= count.
    count: Neighbours, at least 1.
    block: Of `known` at a time; by default few enough for 100 MB, whatever their size.

  >>> nearest(np.array([[0.0], [5.0]]), np.array([[4.0], [1.0], [9.0]]), 2).tolist()
  [[1, 0], [0, 1]]
  """
  rows = samples.reshape(len(samples), -1).astype(np.float64)
  block = block or max(1, _AT_ONCE // rows.shape[1])
  squared = np.empty((len(samples), 0))
  numbers = np.empty((len(samples), 0), np.int64)
  for start in range(0, len(known), block):
    part = known[start : start + block].reshape(-1, rows.shape[1]).astype(np.float64)
    found = np.stack([((part - row[None]) ** 2).sum(1) for row in rows])
    squared = np.concatenate([squared, found], 1)
    these = np.broadcast_to(np.arange(start, start + len(part))[None], found.shape)
    numbers = np.concatenate([numbers, these], 1)
    order = np.argsort(squared, 1, kind="stable")[:, :count]
    squared, numbers = np.take_along_axis(squared, order, 1), np.take_along_axis(numbers, order, 1)
  return numbers


def save_neighbours(
  path: epath.PathLike,
  samples: np.ndarray,
  train: np.ndarray,
  extractor: Extractor | None = None,
  columns: int = COLUMNS,
) -> np.ndarray:
  """Draw each sample at the left of its row, then the training images nearest to it, nearest first.

  Args:
    path: Of the PNG.
    samples: uint8 [N, H, W, C], N >= 1.
    train: uint8 [M, H, W, C], M >= 1.
    extractor: Whose features neighbours are found by; None: by pixels.
    columns: Neighbours of each, fewer if there are not so many.

  Returns:
    Their numbers, int [N, columns].

  Raises:
    UserError: The place cannot be written.
  """
  measured = (lambda images: extractor(images).features) if extractor is not None else (lambda images: images)
  near = nearest(measured(samples), measured(train), min(columns, len(train)))
  rows = [np.concatenate([sample[None], train[few]]) for sample, few in zip(samples, near, strict=True)]
  save_grid(np.concatenate(rows), path, columns=1 + near.shape[1])
  return near
