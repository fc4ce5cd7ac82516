"""What makes images of any kind and size a set of one shape: how a file is read, cropped and resized."""

import dataclasses

import numpy as np

from cm_jax.data.sources.crops import CROPS
from cm_jax.data.sources.decoding import MAX_PIXELS, Reading
from cm_jax.errors import UserError, one_of

MAX_RESOLUTION = 4096


@dataclasses.dataclass(frozen=True)
class Framing:
  """How images become squares; the default leaves them as they are, which then have one size already.

  Args:
    crop: A key of `CROPS`, or none. adm and edm make grey images RGB, center only beside colours.
    resolution: Side of the squares in pixels, 1 to 4096; without a crop the size that all images must have.
      0: any.
    alpha, exif: Of `Reading`. Without an alpha adm drops it, as ADM does.

  Raises:
    UserError: A field out of range; a crop without a resolution.

  >>> Framing("center", 64)
  Framing(crop='center', resolution=64, alpha='', exif=True)
  """

  crop: str = "none"
  resolution: int = 0
  alpha: str = ""
  exif: bool = True

  def __post_init__(self):
    if self.crop not in ("none", *CROPS):
      raise UserError("crop", self.crop, one_of(("none", *CROPS), self.crop))
    size = self.resolution
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_RESOLUTION:
      raise UserError("resolution", size, f"1 to {MAX_RESOLUTION} pixels (0: as they are)")
    if self.crops and not size:
      raise UserError(
        "resolution", size, f"the side of the squares that the crop {self.crop} makes, such as 64"
      )
    if not isinstance(self.exif, bool):
      raise UserError("exif", self.exif, "True or False")
    _ = self.reading

  @property
  def crops(self) -> bool:
    """Whether images of any size will do."""
    return self.crop != "none"

  @property
  def keeps_grey(self) -> bool:
    """Whether a set without any colour stays one."""
    return self.crop in ("none", "center")

  @property
  def reading(self) -> Reading:
    """How a file is read."""
    return Reading(self.alpha or ("drop" if self.crop == "adm" else ""), self.exif)

  @property
  def smaller(self) -> int:
    """What a JPEG need not be decoded beyond: twice the resolution; 0: every pixel counts."""
    return 2 * self.resolution if self.crop == "center" else 0

  def __call__(self, pixels: np.ndarray, name: str, channels: int) -> np.ndarray:
    """Return an image as it is in the set: uint8 [resolution, resolution, channels] if there is a crop.

    Args:
      pixels: uint8 [H, W, C], C = 1 or 3.
      name: What to call the image in an error.
      channels: Of the set, if there is a crop.

    Raises:
      UserError: Without a crop, another size than the resolution; a strip that a crop would make huge.
    """
    if self.crops:
      height, width = pixels.shape[:2]
      if self.resolution**2 * max(height, width) > MAX_PIXELS * min(height, width):
        raise UserError(name, f"{height}x{width}", f"sides that differ less, for a crop of {self.resolution}")
      made = CROPS[self.crop](pixels, self.resolution)
      return np.ascontiguousarray(np.broadcast_to(made, (*made.shape[:2], channels)))
    if self.resolution and pixels.shape[:2] != (self.resolution, self.resolution):
      expected = f"{self.resolution}x{self.resolution}, or the crop {' or '.join(CROPS)}"
      raise UserError(name, f"{pixels.shape[0]}x{pixels.shape[1]}", expected)
    return pixels


AS_THEY_ARE = Framing()
