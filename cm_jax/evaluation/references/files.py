"""Reference files: ours, EDM's .npz (mu, sigma), ADM's .npz (images, statistics or both), EDM2's .pkl.

None of them ever runs code: arrays are read without pickle, a pickle by the audited reader.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cm_jax.convert.readers.arrays import read_arrays
from cm_jax.convert.readers.pickles import Bounded, Refused
from cm_jax.data.sources.entries import check_total, read_array
from cm_jax.errors import DAMAGE, UserError
from cm_jax.evaluation.references.statistics import Statistics, moments_of
from cm_jax.storage import bounded, whole

ENDINGS = (".npz", ".pkl")
# EDM2's names of the statistics in a .pkl, by the features that they are of.
EDM2_NAMES: Mapping[str, str] = {"inception": "fid", "dinov2-l": "fd_dinov2"}
_ABOUT = 1 << 16  # bytes, at most, of what a file says of itself
_BAD = (*DAMAGE, OSError, EOFError, NotImplementedError, RuntimeError, MemoryError)
_BAD_ZIP = (zipfile.BadZipFile, zlib.error)
_EXPECTED = "an .npz with mu and sigma, or images in arr_0 (no pickled objects)"


def read_statistics(path: str | os.PathLike, features: str = "inception") -> Statistics | None:
  """Return the statistics that a file holds; None of an .npz that holds images only.

  Args:
    path: An .npz or a .pkl.
    features: What they should be of, the name of an extractor: an EDM2 .pkl holds several.

  Raises:
    UserError: Names the file: not there, damaged, pickled objects, other features than those asked for.
  """
  place = Path(path)
  if not place.is_file():
    raise UserError("reference", str(path), f"a file that is there: {', '.join(ENDINGS)}")
  try:
    found = _of_pickle(place, features) if place.suffix == ".pkl" else _of_npz(place)
  except Refused as refused:
    raise UserError("reference", str(path), str(refused)) from None
  except (*_BAD, *_BAD_ZIP) as error:
    if isinstance(error, UserError):
      raise
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    kind = "EDM2's reference statistics" if place.suffix == ".pkl" else _EXPECTED
    raise UserError("reference", str(path), f"{kind} ({said})") from None
  return found


def holds_images(path: str | os.PathLike) -> bool:
  """Say whether a file is an .npz with images in it."""
  try:
    with zipfile.ZipFile(path) as archive:
      return "arr_0.npy" in archive.namelist()
  except (OSError, *_BAD_ZIP):
    return False


def file_hash(path: str | os.PathLike) -> str:
  """Return the hex sha256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _of_npz(path: Path) -> Statistics | None:
  whole.check_regular(path)
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    if len(set(names)) != len(names):
      raise ValueError("two entries of one name")
    check_total(archive)
    read = lambda name: read_array(archive, name) if f"{name}.npy" in names else None
    mean, covariance = read("mu"), read("sigma")
    if mean is None and covariance is None and "arr_0.npy" in names:
      return None
    if mean is None or covariance is None:
      raise ValueError(f"entries {', '.join(sorted(names)[:8])}")
    count, text = read("n"), read("about")
    mean_s, covariance_s = read("mu_s"), read("sigma_s")
  number = None if count is None else int(count)
  about = {} if text is None else _described(text, str(path))
  moments = moments_of(mean, covariance, number)
  lacks = mean_s is None or covariance_s is None
  spatial = None if lacks else moments_of(np.asarray(mean_s), np.asarray(covariance_s), number)
  return Statistics(moments, spatial, about, file_hash(path))


def _described(text: np.ndarray, path: str) -> dict[str, Any]:
  if text.dtype.kind != "U" or text.nbytes > 4 * _ABOUT:
    raise ValueError("what the file says of itself is no short text")
  return bounded.parse_object(str(text), path, "a description as JSON", _ABOUT * 16)


def _of_pickle(path: Path, features: str) -> Statistics:
  whole.check_regular(path)
  with open(path, "rb") as file:
    content = read_arrays(Bounded(file))
  named = {name: part for name, part in content.items() if isinstance(part, dict) and "mu" in part}
  wanted = EDM2_NAMES.get(features, features)
  if "mu" in content:
    named = {wanted: content}
  if wanted not in named:
    held = ", ".join(sorted(named)) or json.dumps(sorted(content)[:8])
    raise Refused(f"a file with the statistics {wanted} (of {features}), not only {held}")
  part = named[wanted]
  return Statistics(moments_of(part["mu"], part["sigma"], None), hash=file_hash(path))
