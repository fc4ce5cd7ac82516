"""Does it make every class, and does it make anything but copies of the training set?"""

import numpy as np


def class_entropy(logits: np.ndarray) -> float:
  """Return the entropy of the predicted classes' histogram over its maximum, log(classes): 1 if all come equally often, 0 if one does.

  Args:
    logits: [N, classes], N >= 1, at least 2 classes.

  >>> class_entropy(np.eye(4)), class_entropy(np.eye(4)[:2]), class_entropy(np.eye(4)[:1])
  (1.0, 0.5, 0.0)
  """
  classes = logits.shape[1]
  share = np.bincount(np.argmax(logits, 1), minlength=classes) / len(logits)
  share = share[share > 0]
  return float(np.abs((share * np.log(share)).sum()) / np.log(classes))


def nearest_neighbour_distance(samples: np.ndarray, train: np.ndarray, block: int = 1024) -> float:
  """Return the mean L2 distance, in [-1, 1] pixels, from each sample to the training image nearest to it.

  Compare it with that of real images outside the training set: much lower means memorised. Exact: the squared distances are sums of
  whole numbers below 2^53.

  Args:
    samples: uint8 [N, H, W, C], N >= 1.
    train: uint8 [M, H, W, C], M >= 1.
    block: Samples compared at a time; memory is block * M * 8 bytes.

  >>> train = np.zeros((1, 2, 2, 1), np.uint8)
  >>> nearest_neighbour_distance(train + np.uint8([[[[0]]], [[[255]]]]), train)
  2.0
  """
  known = train.reshape(len(train), -1).astype(np.float64)
  known_norm = (known * known).sum(1)
  total = 0.0
  for start in range(0, len(samples), block):
    x = samples[start : start + block].reshape(-1, known.shape[1]).astype(np.float64)
    squared = (x * x).sum(1)[:, None] + known_norm[None] - 2 * (x @ known.T)
    total += float(np.sqrt(squared.min(1)).sum())
  return total / len(samples) / 127.5
