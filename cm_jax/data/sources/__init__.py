"""Data sets by name: a source is `scheme:argument`, such as digits:train or folder:/data/faces.

A new kind of source is one file with a class, and one line in `SOURCES`.
"""

import sys
from typing import Protocol

from cm_jax.data.sources import stored
from cm_jax.data.sources.archives import NpzSource, ZipSource
from cm_jax.data.sources.classes import class_names, labels, listed
from cm_jax.data.sources.digits import DigitsSource
from cm_jax.data.sources.encoded import EncodedImages, images
from cm_jax.data.sources.folder import FolderSource
from cm_jax.data.sources.framing import AS_THEY_ARE, Framing
from cm_jax.data.sources.latents import LatentSource
from cm_jax.data.sources.lmdb import LmdbSource
from cm_jax.data.sources.python import PythonSource
from cm_jax.data.sources.tfds import TfdsSource
from cm_jax.data.sources.views import framed, without_corrupt
from cm_jax.errors import UserError, one_of
from cm_jax.types import Source

__all__ = [
  "SOURCES",
  "Framing",
  "class_names",
  "images",
  "is_code",
  "is_data_of",
  "labels",
  "open_source",
  "told",
  "validate_source",
]


class SourceKind(Protocol):
  """A kind of source: made from what follows `scheme:`; `check` is the part of that which reads nothing."""

  def __call__(self, argument: str, /) -> Source: ...

  def check(self, argument: str, /) -> None: ...


SOURCES: dict[str, SourceKind] = {
  "digits": DigitsSource,
  "folder": FolderSource,
  "latents": LatentSource,
  "lmdb": LmdbSource,
  "npz": NpzSource,
  "python": PythonSource(),
  "tfds": TfdsSource,
  "zip": ZipSource,
}


CODE = ("python",)  # schemes whose sources are code that runs when it is named


def is_code(spec: str) -> bool:
  """Say whether opening a source runs code that it names: then only the user may name it, and no stored file.

  >>> is_code("python:my.module:images"), is_code("zip:images.zip")
  (True, False)
  """
  return str(spec).partition(":")[0] in CODE


def validate_source(spec: str) -> None:
  """Check a source's scheme and that what it names is there, without reading it.

  Args:
    spec: `"digits"`, `"digits:train"`, `"digits:test"`, `"folder:/path"`, `"npz:/path"`, `"zip:/path"`,
      `"lmdb:/path"`, `"tfds:NAME:SPLIT:DATA_DIR"` (the last two may be left out), `"latents:/path"` or
      `"python:MODULE:FUNCTION"`. A path may be in an object store, `"folder:s3://bucket/name"`: what it
      holds is fetched to the cache once.

  Raises:
    UserError: Unknown scheme, missing path, wrong split.

  >>> validate_source("digits:train")
  >>> validate_source("digit:train")  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  cm_jax.errors.UserError: source = digit:train: expected 'digits' (did you mean it?) or one of: digits, ...
  """
  scheme, argument = _parse(spec)
  place = stored.address(scheme, argument)
  if place is None:
    SOURCES[scheme].check(argument)
  else:
    stored.check(scheme, argument, place)


def open_source(spec: str, skip_corrupt: bool = False, framing: Framing = AS_THEY_ARE) -> Source:
  """Open a source (`validate_source` states the forms); images are decoded when they are asked for.

  Args:
    spec: As `validate_source` states.
    skip_corrupt: Decode every image of a folder, zip or tfds set once and leave out those that cannot be;
      says so on standard error.
    framing: How images are read and cropped; by default they have one size already.

  Raises:
    UserError: What `validate_source` raises; an empty folder; labels that do not match; a file that is not
      what its scheme says.

  >>> source = open_source("digits:test")
  >>> len(source), source.num_classes, source[0]["image"].shape
  (360, 10, (8, 8, 1))
  """
  scheme, argument = _parse(spec)
  source = framed(SOURCES[scheme](stored.here(scheme, argument)), framing, spec)
  if skip_corrupt and isinstance(source, EncodedImages):
    count = len(source)
    source, problems = without_corrupt(source)
    for said in problems[:10]:
      print(f"skipped: {said}", file=sys.stderr)
    if problems:
      print(f"{spec}: {len(problems)} of {count} images skipped", file=sys.stderr)
  return source


def is_data_of(source: Source, fingerprint: str, conditional: bool) -> bool:
  """Whether a source is the data that a fingerprint is of.

  For a model without classes labels do not matter: a zip's class folders had none before they were read.

  >>> is_data_of(open_source("digits:test"), "0" * 64, False)
  False
  """
  if source.fingerprint == fingerprint:
    return True
  return (
    not conditional and isinstance(source, EncodedImages) and source.unlabelled_fingerprint == fingerprint
  )


def told(source: Source) -> list[str]:
  """Return what a person should know of a source before training on it, a line each.

  That are its classes, and where its images are files what was left out and what is done to odd ones.

  >>> told(open_source("digits:test"))
  ['10 classes']
  """
  names, count = class_names(source), source.num_classes
  if isinstance(source, EncodedImages):
    about = listed(names, count, source.survey.labels.keys())
    return about + source.notes + source.survey.told(source.framing)
  return listed(names, count, set(labels(source).tolist())) if count else []


def _parse(spec: str) -> tuple[str, str]:
  scheme, _, argument = str(spec).partition(":")
  if scheme not in SOURCES:
    raise UserError("source", spec, one_of(SOURCES, scheme))
  return scheme, argument
