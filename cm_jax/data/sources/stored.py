"""Data in an object store: what of it each kind of source reads, brought to this machine once."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cm_jax.data.sources import latents, lmdb, names, tfds
from cm_jax.errors import UserError, one_of
from cm_jax.storage import bucket, fetched

FIELD = "source"


class Stored(NamedTuple):
  """How a kind of source is read from an object store.

  Attributes:
    place: Of a source's argument, the address of what it reads.
    bring: Of that argument, what it is with a copy of this machine in place of the store's.
  """

  place: Callable[[str], str]
  bring: Callable[[str], str]


def _file(argument: str) -> str:
  return str(fetched.local(argument, FIELD))


def _folder(argument: str) -> str:
  is_read = lambda name: name == names.DESCRIPTION or (names.is_image(name) and not names.is_litter(name))
  # what is no image is counted by its name
  return str(fetched.local_folder(argument, FIELD, is_read, lambda name: not names.is_litter(name)))


def _latents(argument: str) -> str:
  return str(fetched.local_folder(argument, FIELD, latents.FILES.__contains__))


def _lmdb(argument: str) -> str:
  is_folder = fetched.is_folder(argument, FIELD)
  return _file(f"{argument.rstrip('/')}/{lmdb.DATA}" if is_folder else argument)


def _tfds_place(argument: str) -> str:
  name, _, folder = tfds.parts(argument)
  return f"{folder.rstrip('/')}/{name}"


def _tfds(argument: str) -> str:
  name, split, folder = tfds.parts(argument)
  return f"{name}:{split}:{fetched.local_folder(folder, FIELD, below=name)}"


STORED: Mapping[str, Stored] = {
  "folder": Stored(str, _folder),
  "latents": Stored(str, _latents),
  "lmdb": Stored(str, _lmdb),
  "npz": Stored(str, _file),
  "tfds": Stored(_tfds_place, _tfds),
  "zip": Stored(str, _file),
}


def address(scheme: str, argument: str) -> str | None:
  """Return the address of what a source reads in an object store; None where it reads none.

  Raises:
    UserError: Sources of that kind are of this machine.

  >>> address("tfds", "mnist:train:s3://data/sets"), address("zip", "images.zip")
  ('s3://data/sets/mnist', None)
  """
  if scheme in STORED:
    place = STORED[scheme].place(argument)
    if bucket.is_bucket(place) and not place.partition("://")[2].strip("/"):
      raise UserError(FIELD, f"{scheme}:{argument}", f"{scheme}:{place.partition('://')[0]}://BUCKET/NAME")
    return place if bucket.is_bucket(place) else None
  if bucket.is_bucket(argument):
    expected = f"{scheme} of this machine, or in an object store {one_of(STORED, scheme)}"
    raise UserError(FIELD, f"{scheme}:{argument}", expected)
  return None


def check(scheme: str, argument: str, place: str) -> None:
  """Check that what a source reads in an object store is there.

  Raises:
    UserError: It is not.
  """
  if not fetched.is_there(place, FIELD):
    raise UserError(FIELD, f"{scheme}:{argument}", f"{scheme}:PATH of what is there, unlike {place}")


def here(scheme: str, argument: str) -> str:
  """Return a source's argument with what it reads in an object store brought to this machine.

  Raises:
    UserError: It cannot be fetched.
  """
  return argument if address(scheme, argument) is None else STORED[scheme].bring(argument)
