"""What a metric is: a value of samples, its counterpart of real images, and how reports show both."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from cm_jax.evaluation.real import RealData


class Samples(NamedTuple):
  """Samples, and what the measuring network says of them.

  Attributes:
    images: uint8 [N,H,W,C].
    features: float32 [N,D].
    logits: float32 [N,classes].
  """

  images: np.ndarray
  features: np.ndarray
  logits: np.ndarray


class Metric(Protocol):
  """One measurement.

  Attributes:
    record: Its name in records; "{data}" in it stands for the name of the reference data.
    baseline: What is added to that, behind "_", for real images; "" where nothing is measured of them.
    columns: Of a report, by title: a format of its values, `{NAME}` and `{NAME_BASELINE}`, NAME that in
      `METRICS`.
    about: What it is, for the reader of a report.
  """

  @property
  def record(self) -> str: ...

  @property
  def baseline(self) -> str: ...

  @property
  def columns(self) -> Mapping[str, str]: ...

  @property
  def about(self) -> str: ...

  def value(self, samples: Samples, real: RealData, /) -> float:
    """Return it of samples."""
    ...

  def of_real(self, real: RealData, /) -> tuple[float, int] | None:
    """Return it of real images and over how many; None where it cannot be had."""
    ...
