"""Write a data set with noise added, to see that a metric tells it from the set itself.

python -m tests.evaluation.noised --source=zip:test16.zip --std=8 --out=noise8.npz
"""

import argparse

import numpy as np

from cm_jax.data.sources import images, open_source


def noised(pixels: np.ndarray, std: float, seed: int = 0) -> np.ndarray:
  """Return uint8 images plus normal noise, rounded and clipped.

  >>> noised(np.full((1, 1, 1, 3), 255, np.uint8), std=0.1).ravel().tolist()
  [255, 255, 255]
  """
  noise = np.random.default_rng(seed).standard_normal(pixels.shape)
  return np.clip(np.rint(pixels + std * noise), 0, 255).astype(np.uint8)


def main() -> None:
  """Read, add, write."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--source", required=True)
  parser.add_argument("--std", type=float, required=True, help="of the noise, in levels of 255")
  parser.add_argument("--out", required=True)
  given = parser.parse_args()
  np.savez(given.out, noised(images(open_source(given.source)), given.std))


if __name__ == "__main__":
  main()
