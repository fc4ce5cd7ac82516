"""Work shared by the processes of a job: who does which part, what all of them know at the end."""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cm_jax.evaluation.moments import Moments

T = TypeVar("T")


def part(count: int) -> range:
  """Return which of `count` things this process does: a run of them, as many as another's or fewer.

  >>> part(5)
  range(0, 5)
  """
  size, index = -(-count // jax.process_count()), jax.process_index() % jax.process_count()
  return range(min(index * size, count), min((index + 1) * size, count))


def all_rows(rows: np.ndarray) -> np.ndarray:
  """Return the rows [n, ...] of all processes, those of the first first, on each; n may differ."""
  if jax.process_count() == 1:
    return rows
  counts = np.asarray(multihost_utils.process_allgather(np.array([len(rows)], np.int32)))[:, 0]
  # as bytes: float64 would be rounded on the way
  flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
  padded = np.pad(flat, ((0, int(counts.max()) - len(flat)), (0, 0)))
  found = np.asarray(multihost_utils.process_allgather(padded))
  whole = np.concatenate([one[:count] for one, count in zip(found, counts, strict=True)])
  return np.ascontiguousarray(whole).view(rows.dtype).reshape(-1, *rows.shape[1:])


def all_moments(moments: Moments | None, size: int) -> Moments:
  """Return the moments of what all processes saw, `size` features; None of one that saw nothing."""
  mine = np.zeros(1 + size + size * size)
  if moments is not None:
    mine = np.concatenate([[moments.count], moments.mean, moments.scatter.ravel()])
  parts = [
    Moments(int(row[0]), row[1 : 1 + size], row[1 + size :].reshape(size, size))
    for row in all_rows(mine[None])
    if row[0]
  ]
  merged = parts[0]
  for other in parts[1:]:
    merged = merged.merge(other)
  return merged


def as_main(tree: T) -> T:
  """Return what the first process has, on all of them: arrays of one structure, sizes and types everywhere.

  Only it may see the files of a job, and what is trained on the spot comes out a little otherwise on another.
  """
  if jax.process_count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  arrays = [np.asarray(leaf) for leaf in leaves]
  # as bytes: float64 would be rounded on the way
  said = multihost_utils.broadcast_one_to_all([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])
  found = [
    np.frombuffer(np.asarray(one).tobytes(), array.dtype).reshape(array.shape)
    for one, array in zip(said, arrays, strict=True)
  ]
  return jax.tree.unflatten(structure, found)
