"""Mean and covariance of the features of a data set, with what they are of; as stored in a file of ours."""

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from cm_jax.errors import UserError
from cm_jax.evaluation.features.base import Extractor
from cm_jax.evaluation.moments import Moments
from cm_jax.storage import whole

# What a file may say it is of, and what an evaluation that uses it has to be of too.
MUST_AGREE = ("features_hash", "resize", "convention", "image_shape")


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """The Gaussian that samples are compared with.

  Attributes:
    moments: Of the features.
    spatial_moments: Of the spatial features (sFID); None where there are none.
    about: What they are of, as far as the file says: n, features, features_hash, convention, resize,
      image_shape, source, dataset_fingerprint; {} for files of peers.
    hash: Sha256 of the file.
  """

  moments: Moments
  spatial_moments: Moments | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  hash: str = ""

  def check(self, field: str, path: str, extractor: Extractor, given: Mapping[str, Any]) -> None:
    """Check that samples can be compared with it.

    Args:
      field, path: As errors name it.
      extractor: What measures them.
      given: What the evaluation is of, under the names of `MUST_AGREE`.

    Raises:
      UserError: Another number of features; or another network, resize, convention or size of images than the
        file says it is of.
    """
    size = len(self.moments.mean)
    if size != extractor.size:
      expected = f"statistics of the {extractor.size} features of {extractor.name}, not of {size}"
      raise UserError(field, path, expected)
    for name in MUST_AGREE:
      theirs, ours = self.about.get(name), given.get(name)
      if theirs is not None and ours is not None and _plain(theirs) != _plain(ours):
        what = "image shape" if name == "image_shape" else name.replace("_", " ")
        raise UserError(field, path, f"statistics of the {what} {_short(ours)}, not {_short(theirs)}")


def moments_of(mean: np.ndarray, covariance: np.ndarray, count: int | None) -> Moments:
  """Return moments from a mean [D] and an unbiased covariance [D, D].

  Args:
    mean, covariance: As stored.
    count: Images that they are of; None where unknown, which the covariance does not need.

  Raises:
    ValueError: Shapes that do not go together, numbers that are not finite, a covariance that is none.
  """
  mean, covariance = (np.asarray(value, np.float64) for value in (mean, covariance))
  if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
    raise ValueError(f"a mean of shape {mean.shape} and a covariance of shape {covariance.shape}")
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise ValueError("numbers that are not finite")
  largest = np.abs(covariance).max()
  if np.abs(covariance - covariance.T).max() > 1e-3 * largest or np.diag(covariance).min() < 0:
    raise ValueError("a covariance that is not symmetric, or has a negative diagonal")
  known = count if count is not None and count >= 2 else 2
  return Moments(known, mean, covariance * (known - 1))


def save_statistics(path: epath.PathLike, statistics: Statistics) -> None:
  """Write statistics as an .npz: mu, sigma (mu_s, sigma_s), n, and `about` as JSON; EDM and ADM read it too.

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  moments, spatial = statistics.moments, statistics.spatial_moments
  arrays: dict[str, Any] = {"mu": moments.mean, "sigma": moments.covariance, "n": np.int64(moments.count)}
  if spatial is not None:
    arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
  content = io.BytesIO()
  np.savez(content, **arrays, about=np.array(json.dumps(dict(statistics.about), sort_keys=True)))
  whole.write(path, content.getvalue())


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
  return f"{value[:16]}..." if isinstance(value, str) and len(value) == 64 else str(_plain(value))
