"""Images on their way from a source to a writer: read, cropped and encoded by threads, a few at a time."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from cm_jax.data.prepare.kept import Image, Kept, made_of
from cm_jax.data.sources.classes import UNLABELLED
from cm_jax.data.sources.decoding import decode
from cm_jax.data.sources.encoded import EncodedImages, check_shape
from cm_jax.data.sources.framing import AS_THEY_ARE, Framing
from cm_jax.data.sources.threads import in_order
from cm_jax.errors import UserError
from cm_jax.storage.pictures import encode_png
from cm_jax.types import Source

SAMPLES = 64  # images of the grid that shows what was made
# an image's number -> what it is made of, its label
Read: TypeAlias = Callable[[int], tuple[bytes | np.ndarray, int]]
Decode: TypeAlias = Callable[[Any, int], np.ndarray]  # that, an image's number -> uint8 [H, W, C]
Where: TypeAlias = Callable[[int], str]  # an image's number -> what an error calls it


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is done to every image.

  Args:
    framing: How an image is cropped.
    channels: Of the images that a crop makes.
    skip_corrupt: Leave out what cannot be decoded.
  """

  framing: Framing = AS_THEY_ARE
  channels: int = 3
  skip_corrupt: bool = False


class Reader(NamedTuple):
  """How images of a source are read, what makes pixels of them, what errors call them."""

  read: Read
  pixels: Decode
  where: Where


class Conversion:
  """One pass over a source: `images` yields what can be written; the rest is known once it is exhausted.

  Args:
    recipe: What is done.
    reader: Of the source.
    count: Number of images.
    num_classes: 0 if unlabelled.
    every_label: Of every label that the source has, int32 [N]; for tfds' own features.

  Attributes:
    labels: Of the images passed.
    skipped: A line for every image left out.
    enlarged: Number of images that were smaller than the resolution.
    shape: (H, W, C) of all images.
  """

  def __init__(
    self,
    recipe: Recipe,
    reader: Reader,
    count: int,
    num_classes: int,
    every_label: Mapping[str, np.ndarray] | None = None,
  ):
    self.num_classes, self.every_label = num_classes, every_label or {}
    self.labels: list[int] = []
    self.skipped: list[str] = []
    self.enlarged = 0
    self.shape: tuple[int, ...] = ()
    self._recipe, self._reader, self._where, self._count = recipe, reader, reader.where, count
    self._kept: Kept | None = None
    self._samples: list[bytes] = []
    self.images = self._pass()

  def keep(self, kept: Kept) -> None:
    """Keep the images on the way, and take those that are kept."""
    self._kept = kept

  def _pass(self) -> Generator[Image, None, None]:
    shown = set(np.linspace(0, self._count - 1, SAMPLES).astype(int).tolist())
    first, last = None, b""
    made = in_order(self._make, range(self._count), "preparing")
    # closed at once when a writer fails: not when the garbage collector finds the threads
    with contextlib.closing(made), self._keeping():
      for image in made:
        if isinstance(image, UserError):
          self.skipped.append(str(image))
          continue
        if first is None:
          first, self.shape = self._where(image.index), image.shape
        check_shape(self._where(image.index), image.shape, first, self.shape)
        self.labels.append(image.label)
        self.enlarged += image.enlarged
        if image.index in shown:
          self._samples.append(image.png)
        last = image.png
        if self._kept is not None:
          self._kept.add(image)
        yield image
    if first is None:
      raise UserError("source", f"{self._count} corrupt images", f"one that is whole ({self.skipped[0]})")
    self._samples = self._samples or [last]

  @contextlib.contextmanager
  def _keeping(self) -> Iterator[None]:
    """Write what waits to be kept when the pass is stopped."""
    try:
      yield
    except (KeyboardInterrupt, GeneratorExit):
      if self._kept is not None:
        self._kept.write()
      raise

  def _make(self, index: int) -> Image | UserError:
    try:
      content, label = self._reader.read(index)
      digest = made_of(content, label, f"{self._recipe.framing} {self._recipe.channels}")
      if self._kept is not None and (found := self._kept.find(index, digest)) is not None:
        return found
      pixels = self._reader.pixels(content, index)
    except UserError as error:
      if self._recipe.skip_corrupt:
        return error
      raise
    if not (0 <= label < self.num_classes if self.num_classes else label == UNLABELLED):
      none = f"{UNLABELLED}, as the source has no classes"
      expected = f"a class below {self.num_classes}" if self.num_classes else none
      raise UserError(self._where(index), f"label {label}", expected)
    framing = self._recipe.framing
    enlarged = framing.crops and min(pixels.shape[:2]) < framing.resolution
    pixels = framing(pixels, self._where(index), self._recipe.channels)
    return Image(index, encode_png(pixels), label, pixels.shape, enlarged, digest)

  def samples(self) -> np.ndarray:
    """Return images from all over the set, fewer if they are large: uint8 [n, H, W, C]."""
    count = min(len(self._samples), max(4, (2048 // max(self.shape[:2])) ** 2))
    chosen = np.linspace(0, len(self._samples) - 1, count).astype(int)
    return np.stack([decode(self._samples[index], "sample") for index in chosen])


def reader(source: Source, spec: str) -> Reader:
  """Return how images of a source are read, files each at its own size.

  Args:
    source: From `open_source`.
    spec: What it was opened with.

  Raises:
    UserError: When one is read: it is not uint8 with 1 or 3 channels.
  """
  if isinstance(source, EncodedImages):
    return Reader(source.record, source.pixels, source.where)

  where = lambda index: f"{spec}, image {index}"

  def read_array(index: int) -> tuple[np.ndarray, int]:
    item = source[index]
    image = item["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
      raise UserError(where(index), f"{image.dtype} {list(image.shape)}", "uint8 [H, W, C] with C = 1 or 3")
    return image, int(item["label"])

  return Reader(read_array, as_it_is, where)


def as_it_is(pixels: np.ndarray, index: int) -> np.ndarray:
  """Return the pixels of an image that was never encoded."""
  return pixels
