"""What kinds of files a set of images is of, by their headers: what is to be told of it, and whether it is
grey."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping

from cm_jax.data.sources.decoding import Header, read_header
from cm_jax.data.sources.fingerprints import remembered
from cm_jax.data.sources.framing import Framing
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError

_COUNTED = ("alpha", "wide", "cmyk", "frames")


@dataclasses.dataclass(frozen=True)
class Survey:
  """How many files of each kind there are.

  Attributes:
    formats: By format.
    sizes: By the shorter side in pixels.
    kinds: With the property of a `Header` of that name: alpha, wide, cmyk, frames; turned; coloured.
    unreadable: That are no images.
    labels: By class, -1 for none.
  """

  formats: Mapping[str, int]
  sizes: Mapping[int, int]
  kinds: Mapping[str, int]
  unreadable: int
  labels: Mapping[int, int]

  @property
  def grey(self) -> bool:
    """Whether no image has colours."""
    return not self.kinds.get("coloured", 0)

  def smaller_than(self, resolution: int) -> int:
    """Return how many images are smaller."""
    return sum(count for size, count in self.sizes.items() if size < resolution)

  def told(self, framing: Framing) -> list[str]:
    """Return what kinds there are, if several, and what is done to images that are not plain, a line each.

    >>> Survey({"JPEG": 3}, {50: 1, 90: 2}, {"turned": 2}, 0, {-1: 3}).told(Framing("edm", 64))
    ['2 turned as their EXIF data asks', '1 smaller than 64 pixels: enlarged']
    """
    background = {"": "opaque", "drop": "dropped"}.get(framing.reading.alpha, f"over {framing.reading.alpha}")
    about = {
      "turned": "turned as their EXIF data asks" if framing.exif else "not turned, as their EXIF data asks",
      "alpha": f"with an alpha channel: {background}",
      "wide": "of 16 bits a channel: the upper 8 are kept",
      "cmyk": "in CMYK: made RGB",
      "frames": "of several frames: the first is kept",
    }
    lines = [f"{self.kinds[kind]} {text}" for kind, text in about.items() if self.kinds.get(kind)]
    small = self.smaller_than(framing.resolution) if framing.crops else 0
    if len(self.formats) > 1 or self.unreadable:
      counts = {**self.formats, **({"unreadable": self.unreadable} if self.unreadable else {})}
      lines.insert(0, "files: " + ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)))
    return lines + ([f"{small} smaller than {framing.resolution} pixels: enlarged"] if small else [])


def survey(
  record: Callable[[int], tuple[bytes, int]], where: Callable[[int], str], count: int, stamp: Iterable[str]
) -> Survey:
  """Return what the headers of a set's files say; remembered in the cache folder.

  Args:
    record: From an image's number to its file's bytes and its label.
    where: From its number to what an error calls it.
    count: Number of images.
    stamp: What changes when a file does.
  """

  def header(index: int) -> tuple[Header | None, int]:
    data, label = record(index)
    try:
      return read_header(data, where(index)), label
    except UserError:
      return None, label

  def compute() -> str:
    formats, sizes, kinds, bad, labels = (collections.Counter[str]() for _ in range(5))
    for found, label in in_order(header, range(count), "looking at the images"):
      labels[str(label)] += 1
      if found is None:
        bad["unreadable"] += 1
        continue
      formats[found.format] += 1
      sizes[str(found.size)] += 1
      kinds.update(kind for kind in _COUNTED if getattr(found, kind))
      kinds["turned"] += found.turned != 1
      kinds["coloured"] += not found.grey
    return json.dumps([formats, sizes, kinds, bad["unreadable"], labels])

  formats, sizes, kinds, unreadable, labels = json.loads(remembered(["survey 2\n", *stamp], compute))
  numbers = lambda counts: {int(key): number for key, number in counts.items()}
  return Survey(formats, numbers(sizes), kinds, unreadable, numbers(labels))
