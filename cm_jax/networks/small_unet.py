"""SongUNet for a laptop, its sizes chosen by the resolution: what somebody's own images start with."""

from cm_jax.networks.songunet import SongUNet

# By the largest resolution: width of every level over 32 channels, and blocks a level. They stay as they are:
# a run's config.json says the name only.
SIZES = {
  32: ((1, 2, 3), 1),  # 1.9 million parameters
  64: ((1, 2, 4, 6), 1),  # 7.5 million
  4096: ((1, 2, 4, 6, 8), 2),  # 21.6 million at 128 pixels and beyond
}
LARGEST = SIZES[4096]
SMALLEST = 4  # pixels of the lowest level


class SmallUNet(SongUNet):
  """A DDPM++ of about 2 million parameters to 32 pixels, 8 at 64, 20 at 128; attention at the lowest level.

  Args:
    model_channels, channel_mult, num_blocks: 0 and () take them from `SIZES`; as of `SongUNet` otherwise. A
      resolution that does not halve so often has fewer levels, of which the lowest is wider.
    Others: As in `SongUNet`.

  >>> net = SmallUNet(img_resolution=48, in_channels=3, out_channels=3)
  >>> net.model_channels, net.channel_mult, net.num_blocks
  (32, (1, 2, 4, 6), 1)
  """

  model_channels: int = 0
  channel_mult: tuple[int, ...] = ()
  num_blocks: int = 0
  attn_resolutions: tuple[int, ...] = ()
  dropout: float = 0.0

  def __post_init__(self):
    widths, blocks = next((size for most, size in SIZES.items() if self.img_resolution <= most), LARGEST)
    for field, value in (
      ("model_channels", 32),
      ("channel_mult", _levels(widths, self.img_resolution)),
      ("num_blocks", blocks),
    ):
      if not getattr(self, field):
        object.__setattr__(self, field, value)
    super().__post_init__()


def _levels(widths: tuple[int, ...], resolution: int) -> tuple[int, ...]:
  """Return the widths of as many levels as a resolution has.

  >>> _levels((1, 2, 4, 6), 64), _levels((1, 2, 4, 6), 50), _levels((1, 2, 3), 8), _levels((1, 2, 3), 31)
  ((1, 2, 4, 6), (1, 7), (1, 4), (4,))
  """
  count = 1
  while count < len(widths) and resolution % (1 << count) == 0 and resolution >> count >= SMALLEST:
    count += 1
  if count == len(widths):
    return widths
  lowest = widths[-1] + 1
  return (*widths[: count - 1], lowest) if count > 1 else (min(lowest, 4),)  # all of it at full size
