"""Data sets, batches and what is done to pixels: sources -> pipeline -> augment.

`config.data.source` is `scheme:argument`; a new kind of source is one class and one line in `SOURCES`.
"""

from cm_jax.data.archives import NpzSource, ZipSource
from cm_jax.data.digits import DigitsSource
from cm_jax.data.folder import FolderSource
from cm_jax.data.sources import SourceClass, images, labels
from cm_jax.errors import UserError, one_of
from cm_jax.types import Source

SOURCES: dict[str, SourceClass] = {"digits": DigitsSource, "folder": FolderSource, "npz": NpzSource, "zip": ZipSource}

__all__ = ["SOURCES", "images", "labels", "open_source", "validate_source"]


def validate_source(spec: str) -> None:
  """Check a source's scheme and that what it names is there, without reading it.

  Args:
    spec: `"digits"`, `"digits:train"`, `"digits:test"`, `"folder:/path"`, `"npz:/path"` or `"zip:/path"`.

  Raises:
    UserError: Unknown scheme, missing path, wrong split.

  >>> validate_source("digits:train")
  >>> validate_source("digit:train")
  Traceback (most recent call last):
  cm_jax.errors.UserError: config.data.source = digit:train: expected 'digits' (did you mean it?) or one of: digits, folder, npz, zip
  """
  scheme, argument = _parse(spec)
  SOURCES[scheme].check(argument)


def open_source(spec: str) -> Source:
  """Open the source a config names (`validate_source` states the forms); images are decoded when they are asked for.

  Raises:
    UserError: What `validate_source` raises; an empty folder; labels that do not match; a file that is not what its scheme says.

  >>> source = open_source("digits:test")
  >>> len(source), source.num_classes, source[0]["image"].shape
  (360, 10, (8, 8, 1))
  """
  scheme, argument = _parse(spec)
  return SOURCES[scheme](argument)


def _parse(spec: str) -> tuple[str, str]:
  scheme, _, argument = str(spec).partition(":")
  if scheme not in SOURCES:
    raise UserError("config.data.source", spec, one_of(SOURCES, scheme))
  return scheme, argument
