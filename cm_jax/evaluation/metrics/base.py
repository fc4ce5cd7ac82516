"""What a metric is: values of samples, their counterpart of real images, and how reports show both."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from cm_jax.evaluation.moments import Moments


class Known(Protocol):
  """What is known of a set of images; only what a metric `needs` of it is there.

  Attributes:
    count: Images.
    moments: By "moments" those of the features, by "spatial_moments" those of the spatial ones (sFID).
    features: float32 [N,D].
    logits: float32 [N,classes].
    images: uint8 [N,H,W,C].
  """

  @property
  def count(self) -> int: ...

  @property
  def moments(self) -> Mapping[str, Moments]: ...

  @property
  def features(self) -> np.ndarray: ...

  @property
  def logits(self) -> np.ndarray: ...

  @property
  def images(self) -> np.ndarray: ...


class Real(Protocol):
  """Real images.

  Attributes:
    collected: What is known of the reference, of what a metric `needs_real`.
    train: uint8 [N,H,W,C], what the model may have memorised; None where unknown.
    held_out: uint8 [N,H,W,C], real images it has not seen; None where there are none.
  """

  @property
  def collected(self) -> Known: ...

  @property
  def train(self) -> np.ndarray | None: ...

  @property
  def held_out(self) -> np.ndarray | None: ...

  def remembered(self, name: str, make: Callable[[], np.ndarray], /) -> np.ndarray:
    """Return what is measured of them once, for all sets of samples, under a name."""
    ...


class Metric(Protocol):
  """One measurement, of one value or several.

  Attributes:
    records: Its values: their names in reports, and in records; "{data}" in the latter stands for the name of
      the reference data, or of published features. The first is the one that counts.
    baseline: What is added to the first, behind "_", for real images; "" where nothing is measured of them.
    columns: Of a report, by title: a format of the values, `{NAME}` and `{NAME_BASELINE}`.
    about: What it is, for the reader of a report.
    needs: What it needs of samples, names of what `Known` has: "moments", "spatial_moments", "features",
      "logits", "images".
    needs_real: The same of the reference; and "train", the images of the training.
    needs_baseline: What `of_real` needs besides.
    only: Names of the extractors in whose features it has its name; () for any.
  """

  @property
  def records(self) -> Mapping[str, str]: ...

  @property
  def baseline(self) -> str: ...

  @property
  def columns(self) -> Mapping[str, str]: ...

  @property
  def about(self) -> str: ...

  @property
  def needs(self) -> tuple[str, ...]: ...

  @property
  def needs_real(self) -> tuple[str, ...]: ...

  @property
  def needs_baseline(self) -> tuple[str, ...]: ...

  @property
  def only(self) -> tuple[str, ...]: ...

  def values(self, samples: Known, real: Real, /) -> Mapping[str, float]:
    """Return the values of samples, by their names in reports."""
    ...

  def of_real(self, real: Real, /) -> tuple[float, int] | None:
    """Return the first of real images and over how many; None where it cannot be had."""
    ...
