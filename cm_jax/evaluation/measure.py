"""Measure one sampler of one model: what its samples are like, and what they cost."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cm_jax.evaluation.diversity import class_entropy, nearest_neighbour_distance
from cm_jax.evaluation.features import Features
from cm_jax.evaluation.frechet import Moments, distance_of_moments, frechet_floor
from cm_jax.evaluation.records import Record

QUANTISER = "clip(floor(127.5 x + 128), 0, 255)"
FLOOR_REPEATS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class RealData:
  """What samples are compared with.

  Args:
    name: The reference source as given, such as "digits"; its scheme names the metric, `fd_digits`.
    reference: uint8 [N,H,W,C], the images whose moments are the reference.
    train: uint8, the images the model may have memorised.
    test: uint8, real images it has not seen.
    features: The measure.
  """

  name: str
  reference: np.ndarray
  train: np.ndarray
  test: np.ndarray
  features: Features

  @property
  def metric(self) -> str:
    """The name of the Frechet distance: never FID, which is a distance in Inception's features."""
    return "fd_" + self.name.partition(":")[0]

  def records(self, common: Mapping[str, Any]) -> list[Record]:
    """Measure the real data against itself: the floor of the distance, and how far unseen real images are from the training set."""
    features = self.features(self.reference)[0]
    floor = frechet_floor(features, FLOOR_REPEATS)
    return [
      Record(metric=f"{self.metric}_floor", value=floor, n=len(features) // 2, reference=self.name, **common),
      Record(
        metric="nn_distance_real", value=nearest_neighbour_distance(self.test, self.train), n=len(self.test), reference=self.name, **common
      ),
    ]


def sample_records(samples: np.ndarray, real: RealData, common: Mapping[str, Any]) -> list[Record]:
  """Measure uint8 samples [N,H,W,C]: Frechet distance to the reference, class entropy, distance to the nearest training image."""
  features, logits = real.features(samples)
  distance = distance_of_moments(Moments.of(features), Moments.of(real.features(real.reference)[0]))
  shared = {"n": len(samples), "reference": real.name, **common}
  return [
    Record(metric=real.metric, value=distance, **shared),
    Record(metric="class_entropy", value=class_entropy(logits), **shared),
    Record(metric="nn_distance", value=nearest_neighbour_distance(samples, real.train), **shared),
  ]


def images_per_second(draws: Sequence[Callable[[], int]], repeats: int = 7, least_seconds: float = 0.05) -> list[float]:
  """Return the median rate of each of several samplers, timed in turns so that a noisy machine is noisy for all of them.

  Args:
    draws: Each draws one batch, waits for it, and returns how many images it holds; already compiled.
    repeats: Timings of each, of which the median counts.
    least_seconds: A timing repeats its draw until this long has passed.
  """
  rates: list[list[float]] = [[] for _ in draws]
  for _ in range(repeats):
    for draw, seen in zip(draws, rates, strict=True):
      count, start = 0, time.perf_counter()
      while (elapsed := time.perf_counter() - start) < least_seconds:
        count += draw()
      seen.append(count / elapsed)
  return [float(np.median(seen)) for seen in rates]
