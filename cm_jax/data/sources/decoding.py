"""One image file to pixels: PNG, JPEG, WebP, GIF, BMP, TIFF of any mode that has 8-bit colours to it."""

import dataclasses
import functools
import io
import warnings
from typing import Any

import numpy as np

from cm_jax.errors import UserError, one_of

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Of these the pixels identify an image, since encoders differ; of the others the file, since decoders do.
LOSSLESS = ("PNG", "GIF", "BMP", "TIFF")
ALPHAS = {"white": 255, "black": 0}
MAX_PIXELS = 1 << 26  # of a file; some kB of PNG can say that they are billions
_STRIP = 1 << 22  # pixels that are laid over a background at a time
_ORIENTATION = 274  # EXIF's tag
_READABLE = "an image of grey values or colours"
_EXACT = {"L": "L", "RGB": "RGB", "1": "L"}
_CONVERTED = ("CMYK", "YCbCr", "HSV")
_BYTES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclasses.dataclass(frozen=True)
class Reading:
  """How files of any kind are read.

  Palettes become RGB, CMYK becomes RGB as Pillow does it (no colour profile is applied), of 16 bits a channel
  the upper 8 are kept, of several frames the first.

  Args:
    alpha: What lies behind an image with transparent parts: white or black; "drop" for what its colours are
      there, as ADM reads them; "" refuses it.
    exif: Turn an image as its EXIF data asks for, as phones' photos do.

  Raises:
    UserError: Another alpha.
  """

  alpha: str = ""
  exif: bool = True

  def __post_init__(self):
    known = ("", "drop", *ALPHAS)
    if self.alpha not in known:
      raise UserError("alpha", self.alpha, one_of(ALPHAS, self.alpha))


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of itself.

  Attributes:
    format: One of `FORMATS`, or MPO.
    grey: Whether it has one channel, but for alpha.
    size: The shorter side in pixels.
    alpha: Whether it may have transparent parts.
    turned: EXIF's orientation, 1 for none.
    wide: Whether a channel has 16 bits.
    cmyk: Whether it is of printing inks.
    frames: Whether it has more than one.
  """

  format: str
  grey: bool
  size: int
  alpha: bool
  turned: int
  wide: bool
  cmyk: bool
  frames: bool


def read_header(data: bytes, name: str) -> Header:
  """Return what a file says of itself; its pixels are not decoded.

  Raises:
    UserError: Not an image, or one of too many pixels.
  """
  opened = _open(data, name)
  try:
    return Header(
      str(opened.format),
      opened.mode in ("1", "L", "LA", "La", "I", *_BYTES),
      min(opened.size),
      _has_alpha(opened),
      # a PNG would be decoded, in the search for EXIF data behind its pixels
      _orientation(opened) if opened.format != "PNG" or "exif" in opened.info else 1,
      opened.mode in _BYTES or opened.mode == "I" or _is_16_bit_png(data),
      opened.mode == "CMYK",
      bool(getattr(opened, "is_animated", False)),  # not of all formats
    )
  except Exception as error:
    raise _unreadable(name, error) from error


def decode(data: bytes, name: str, reading: Reading = Reading(), smaller: int = 0) -> np.ndarray:
  """Decode one file to uint8 [H, W, C], C = 1 or 3.

  Args:
    data: The file's bytes.
    name: What to call the file in an error.
    reading: How.
    smaller: Of a JPEG, decode it at 1/2, 1/4 or 1/8 of its size if its sides stay at least so long; 0: whole.

  Raises:
    UserError: Corrupt or truncated; too many pixels; more than 16 bits a channel; transparent parts, where
      `reading` does not say what is behind them.
  """
  opened = _open(data, name)
  try:
    if smaller and opened.format in ("JPEG", "MPO"):
      opened.draft(None, (smaller, smaller))
    opened.load()
    orientation = _orientation(opened) if reading.exif else 1
    pixels = _pixels(opened, data, name, reading.alpha)
  except UserError:
    raise
  except Exception as error:  # Pillow raises OSError, SyntaxError, zlib.error and more for a bad file
    raise _unreadable(name, error) from error
  return np.ascontiguousarray(turned(pixels, orientation))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Return pixels [H, W, C] as EXIF's orientation 1 to 8 asks for.

  >>> turned(np.array([[[1], [2]]]), 6).tolist()  # a quarter to the right
  [[[1]], [[2]]]
  """
  if orientation in (2, 4, 5, 7):
    pixels = pixels[:, ::-1]
  quarters = {3: 2, 4: 2, 5: 1, 8: 1, 6: 3, 7: 3}.get(orientation, 0)
  return np.rot90(pixels, quarters)


def marks(header: Header, reading: Reading) -> bytes:
  """Return what reading makes of a file that its bytes do not say: nothing for most.

  >>> marks(Header("JPEG", False, 8, False, 6, False, False, False), Reading())
  b'turned 6\\x00'
  """
  done = f"turned {header.turned}\0" if reading.exif and header.turned != 1 else ""
  return (done + (f"on {reading.alpha}\0" if header.alpha and reading.alpha else "")).encode()


@functools.cache
def _pillow() -> Any:
  """Return Pillow's `Image`, which says in an error or not at all what it thinks of a file."""
  from PIL import Image

  warnings.filterwarnings("ignore", module=r"PIL\.")  # of sizes that are refused, and of odd EXIF data
  return Image


def _open(data: bytes, name: str) -> Any:
  try:
    size = _webp_size(data)  # its decoder makes room for the picture when it is opened
    opened = None if size > MAX_PIXELS else _pillow().open(io.BytesIO(data), formats=FORMATS)
  except Exception as error:
    raise _unreadable(name, error) from error
  if opened is None or opened.width * opened.height > MAX_PIXELS:
    given = f"{size} pixels" if opened is None else f"{opened.width} x {opened.height} pixels"
    raise UserError(name, given, f"an image of at most {MAX_PIXELS} pixels")
  return opened


def _webp_size(data: bytes) -> int:
  """Return the pixels that a WebP file says it has; 0 for others.

  >>> _webp_size(b"RIFF\\x16\\0\\0\\0WEBPVP8X\\x0a\\0\\0\\0\\0\\0\\0\\0\\xff\\0\\0\\x0f\\0\\0")
  4096
  """
  if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
    return 0
  number = lambda at, bytes_, bits: int.from_bytes(data[at : at + bytes_], "little") & ((1 << bits) - 1)
  match data[12:16]:
    case b"VP8X":
      return (number(24, 3, 24) + 1) * (number(27, 3, 24) + 1)
    case b"VP8L":
      return (number(21, 2, 14) + 1) * ((number(21, 4, 28) >> 14) + 1)
    case b"VP8 ":
      return number(26, 2, 14) * number(28, 2, 14)
  return 0


def _unreadable(name: str, error: Exception) -> UserError:
  expected = f"a whole file, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
  return UserError(name, f"unreadable: {error}", f"{expected} (skip_corrupt leaves such out of a data set)")


def _pixels(opened: Any, data: bytes, name: str, alpha: str) -> np.ndarray:
  """Return the pixels of a loaded image, over what `alpha` says."""
  mode, transparent = opened.mode, "transparency" in opened.info
  if mode in _BYTES or (mode == "I" and opened.format == "PNG"):
    values = np.asarray(opened)
    pixels = (values >> 8).astype(np.uint8)[..., None]
    if not transparent:
      return pixels
    return _over(pixels, np.where(values == opened.info["transparency"], 0, 255)[..., None], name, alpha)
  if transparent and mode == "RGB" and _is_16_bit_png(data):
    raise UserError(name, "a transparent colour of 16 bits", _READABLE)
  if mode in _CONVERTED:
    return np.array(opened.convert("RGB"), np.uint8)
  if mode == "P" and not transparent:
    return np.array(opened.convert("RGB"), np.uint8)
  if mode in _EXACT and not transparent:
    pixels = np.array(opened.convert(_EXACT[mode]), np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
  if mode in ("1", "L", "LA", "La"):
    both = np.array(
      (opened.convert("L") if mode == "1" and not transparent else opened).convert("LA"), np.uint8
    )
  elif mode in ("RGB", "P", "PA", "RGBA", "RGBa"):
    both = np.array(opened.convert("RGBA"), np.uint8)
  else:
    raise UserError(name, f"mode {mode}", _READABLE)
  return _over(both[..., :-1], both[..., -1:], name, alpha)


def _over(pixels: np.ndarray, opacity: np.ndarray, name: str, alpha: str) -> np.ndarray:
  """Return pixels over white or black; as they are where nothing is transparent."""
  if alpha == "drop" or (opacity == 255).all():
    return np.ascontiguousarray(pixels)
  if not alpha:
    raise UserError(
      name, "an image with transparent parts", f"alpha = {' or '.join(ALPHAS)}, what is behind them"
    )
  over = np.empty_like(pixels)
  rows = max(1, _STRIP // pixels.shape[1])
  for strip in (slice(start, start + rows) for start in range(0, len(pixels), rows)):
    a, x = opacity[strip].astype(np.uint32), pixels[strip].astype(np.uint32)
    over[strip] = (x * a + ALPHAS[alpha] * (255 - a) + 127) // 255
  return over


def _has_alpha(opened: Any) -> bool:
  return opened.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in opened.info


def _orientation(opened: Any) -> int:
  try:
    found = opened.getexif().get(_ORIENTATION, 1)
  except Exception:  # EXIF data that cannot be read asks for nothing
    return 1
  return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _is_16_bit_png(data: bytes) -> bool:
  return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"
