"""Make a reference file of real images, once for all evaluations; and look at one."""

from typing import Any

import jax
from etils import epath

from cm_jax.data.sources import Framing
from cm_jax.data.sources.framing import AS_THEY_ARE
from cm_jax.errors import UserError, renamed
from cm_jax.evaluation.asked import measured_by
from cm_jax.evaluation.features import Extractor, with_resize
from cm_jax.evaluation.real import RealData, check_fits
from cm_jax.evaluation.references.files import read_statistics
from cm_jax.evaluation.references.opened import Reference, open_reference
from cm_jax.evaluation.references.statistics import Statistics, save_statistics


def make_reference(
  source: str,
  extractor: Extractor,
  out: epath.PathLike,
  convention: str | None = None,
  framing: Framing = AS_THEY_ARE,
  num: int | None = None,
  **choices: Any,
) -> Statistics:
  """Write the statistics of real images to an .npz, read it again and return it.

  Args:
    source: The images: a source, or a folder, .zip, .npz or .npy.
    extractor: Whose features they are of.
    out: The file.
    convention: Whose way of measuring it belongs to, a key of `CONVENTIONS`; as `evaluate` by default.
    framing: How images become squares.
    num: The first so many; None: all.
    **choices: Other fields of the convention.

  Raises:
    UserError: Names the argument that is not what it should be; what is written differs from what was made.
  """
  extractor, name, _ = measured_by(extractor, convention, num=num, **choices)
  with renamed("reference", "source"):
    reference = open_reference(source, extractor.name, framing)
  images = reference.images
  if images is None:
    raise UserError("source", source, "images, not a file of statistics")
  check_fits(images.shape, extractor)
  count = len(images) if num is None else num
  if not 2 <= count <= len(images):
    raise UserError("num", count, f"2 to the {len(images)} images in {source}")
  spatial = {"spatial_moments"} if "spatial" in extractor.gives else set()
  only_images = Reference(reference.name, None, images)
  real = RealData(only_images, None, None, framing, extractor, frozenset({"moments", *spatial}), num=count)
  moments = real.collected.moments
  about = {**real.described(count), "convention": name}
  made = Statistics(moments["moments"], moments.get("spatial_moments"), about)
  if jax.process_index() == 0:
    save_statistics(out, made)
    again = read_statistics(str(out), extractor.name)
    if again is None or abs(again.moments.mean - made.moments.mean).max() > 0 or again.about != about:
      raise UserError("out", str(out), "the file as it was written: the disk may be damaged")
    return again
  return made


def checked(
  path: str, extractor: Extractor, convention: str | None = None, resize: str | None = None
) -> Statistics:
  """Return the statistics of a file, if samples in an extractor's features can be compared with them.

  Args:
    path: The file.
    extractor: Whose features are meant.
    convention, resize: In whose way, and how images come to the network's size; None: in any, as usual.

  Raises:
    UserError: They cannot, or it holds none.
  """
  with renamed("reference", "check"):
    found = read_statistics(path, extractor.name)
    if found is None:
      raise UserError("reference", path, "a file of statistics, not of images")
    extractor = with_resize(extractor, resize)
    given = {"features_hash": extractor.hash, "resize": extractor.resize, "convention": convention}
    found.check("reference", path, extractor, given)
  return found


def told(path: str, statistics: Statistics) -> list[str]:
  """Return what a file of statistics is, a line each."""
  about, spatial = statistics.about, statistics.spatial_moments
  number = f"{about['n']:,} images" if "n" in about else "an unknown number of images"
  also = "" if spatial is None else f" and {len(spatial.mean)} spatial ones"
  lines = [
    f"{path}: {len(statistics.moments.mean)} features{also} of {number}, sha256 {statistics.hash[:16]}"
  ]
  return lines + [f"  {key.replace('_', ' ')}: {value}" for key, value in sorted(about.items())]
