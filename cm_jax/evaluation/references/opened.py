"""A reference by the name or path that was given: statistics, images, or both (ADM's files)."""

import dataclasses
import functools
from pathlib import Path

from cm_jax.data.sources import SOURCES, Framing, validate_source
from cm_jax.errors import UserError, one_of, renamed
from cm_jax.evaluation.given import Images, open_images
from cm_jax.evaluation.references.files import ENDINGS, file_hash, holds_images, read_statistics
from cm_jax.evaluation.references.published import PUBLISHED
from cm_jax.evaluation.references.statistics import Statistics
from cm_jax.storage import bucket, fetched, whole


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """What samples are compared with; at least one of statistics and images is there.

  Attributes:
    name: As records call it: what was given.
    statistics: Of a file; None: they are computed of the images.
    images: Real images; None where only statistics are known.
  """

  name: str
  statistics: Statistics | None
  images: Images | None

  @property
  def data(self) -> str:
    """What it is of, in the names of records: a source's scheme, or a file's name.

    >>> Reference("digits:train", None, None).data, Reference("refs/cifar10-32x32.npz", None, None).data
    ('digits', 'cifar10-32x32')
    """
    return data_name(self.name)

  @functools.cached_property
  def hash(self) -> str | None:
    """What identifies it: the sha256 of its file, or the fingerprint of its data set."""
    if self.statistics is not None:
      return self.statistics.hash
    if self.images is None:
      return None
    return self.images.fingerprint or file_hash(self.images.spec.partition(":")[2])


def data_name(reference: str) -> str:
  """Return how records name the data of a reference.

  >>> data_name("digits:train"), data_name("refs/img64.pkl"), data_name("zip:faces.zip")
  ('digits', 'img64', 'zip')
  """
  scheme = reference.partition(":")[0]
  return scheme if scheme in SOURCES else Path(reference).stem


def check_reference(reference: str, field: str = "reference") -> None:
  """Check what a reference is, without reading it.

  Raises:
    UserError: A published one, which says where to get it; no file of that name; an unknown source.
  """
  if reference in PUBLISHED:
    url, convention, about = PUBLISHED[reference]
    expected = f"the path of a file: get {url} ({about}; convention {convention}), and give where it lies"
    raise UserError(field, reference, expected)
  scheme = reference.partition(":")[0]
  if scheme in SOURCES:
    with renamed("source", field):
      validate_source(reference)
  elif not whole.place(reference).exists():
    expected = f"{one_of((*SOURCES, *PUBLISHED), scheme)}; or a file that is there ({', '.join(ENDINGS)})"
    raise UserError(field, reference, expected)


def open_reference(reference: str, features: str, framing: Framing, field: str = "reference") -> Reference:
  """Open a reference.

  Args:
    reference: A file of statistics or images, a folder or .zip of images, or a source.
    features: The extractor's name, which tells the statistics of a file that holds several.
    framing: How images became squares.
    field: As errors name it.

  Raises:
    UserError: It is not there, or not what it should be.
  """
  check_reference(reference, field)
  named, (scheme, _, path) = reference, reference.partition(":")
  if bucket.is_bucket(reference) and not fetched.is_folder(reference, field):
    reference = str(fetched.local(reference, field))
  file = str(fetched.local(path, field)) if scheme == "npz" else reference
  with renamed("reference", field):
    statistics = read_statistics(file, features) if Path(file).suffix in ENDINGS else None
  has_images = statistics is None or (Path(file).suffix == ".npz" and holds_images(file))
  images = open_images(reference, field, framing=framing) if has_images else None
  return Reference(named, statistics, images)
