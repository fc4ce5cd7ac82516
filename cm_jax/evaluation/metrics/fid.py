"""FID and sFID: Frechet distances in the features of Inception, and in those alone."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from cm_jax.evaluation.metrics.base import Known, Real
from cm_jax.evaluation.metrics.frechet import distance_of_moments


@dataclasses.dataclass(frozen=True)
class FID:
  """The Frechet distance in Inception's pooled features (Heusel et al. 2017)."""

  records: ClassVar[Mapping[str, str]] = {"fid": "fid"}
  baseline: ClassVar[str] = ""
  needs: ClassVar[tuple[str, ...]] = ("moments",)
  needs_real: ClassVar[tuple[str, ...]] = ("moments",)
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ("inception",)
  columns: ClassVar[Mapping[str, str]] = {"FID": "{fid:.3f}"}
  about: ClassVar[str] = "FID: Frechet distance in the features of inception-2015-12-05."

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    return {"fid": distance_of_moments(samples.moments["moments"], real.collected.moments["moments"])}

  def of_real(self, real: Real) -> None:
    """Return None: nothing is measured of real images."""


@dataclasses.dataclass(frozen=True)
class SpatialFID:
  """sFID: the same in the first 7 channels of Mixed_6 at all places (Nash et al. 2021; ADM's evaluator)."""

  records: ClassVar[Mapping[str, str]] = {"sfid": "sfid"}
  baseline: ClassVar[str] = ""
  needs: ClassVar[tuple[str, ...]] = ("spatial_moments",)
  needs_real: ClassVar[tuple[str, ...]] = ("spatial_moments",)
  needs_baseline: ClassVar[tuple[str, ...]] = ()
  only: ClassVar[tuple[str, ...]] = ("inception",)
  columns: ClassVar[Mapping[str, str]] = {"sFID": "{sfid:.3f}"}
  about: ClassVar[str] = "sFID: Frechet distance in Inception's spatial features."

  def values(self, samples: Known, real: Real) -> dict[str, float]:
    """Return it of samples."""
    moments = samples.moments["spatial_moments"], real.collected.moments["spatial_moments"]
    return {"sfid": distance_of_moments(*moments)}

  def of_real(self, real: Real) -> None:
    """Return None: nothing is measured of real images."""
