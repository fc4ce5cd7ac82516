"""What goes with a source of training images: what samples are compared with, what no training sees."""

import re
from typing import NamedTuple


class Companions(NamedTuple):
  """Sources beside one that trains.

  Attributes:
    reference: What samples of the model are compared with.
    held_out: Images of the same kind that it has not seen; None where none are known.
  """

  reference: str
  held_out: str | None


# (what a source looks like, its reference, its held-out images). Any other source is its own reference, and
# nothing is known of images held out.
COMPANIONS = (
  (r"digits:train", r"digits", r"digits:test"),
  (r"(tfds:cifar100?)(?::train(?:\[[^\]]*\])?(:.+)?)?", r"\g<0>", r"\1:test\2"),
)


def companions(spec: str) -> Companions:
  """Return the sources that go with a source.

  >>> companions("digits:train")
  Companions(reference='digits', held_out='digits:test')
  >>> companions("tfds:cifar10:train:/data")
  Companions(reference='tfds:cifar10:train:/data', held_out='tfds:cifar10:test:/data')
  >>> companions("zip:faces.zip")
  Companions(reference='zip:faces.zip', held_out=None)
  """
  for pattern, reference, held_out in COMPANIONS:
    if match := re.fullmatch(pattern, spec):
      return Companions(match.expand(reference), match.expand(held_out))
  return Companions(spec, None)
