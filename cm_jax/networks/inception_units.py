"""Inception-2015's convolutions: what stands behind what, as data; see `inception`."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple


class Unit(NamedTuple):
  """A convolution without bias, a batch norm, a ReLU."""

  name: str
  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1
  is_padded: bool = True

  @property
  def padding(self) -> list[tuple[int, int]]:
    return [((k - 1) // 2,) * 2 if self.is_padded else (0, 0) for k in self.window]


Chain = tuple[Unit | tuple[Unit, ...], ...]  # a tuple at its end: units side by side, joined


class Block(NamedTuple):
  """Branches side by side, then a pooling; their channels are joined.

  Attributes:
    name: Before the names of its units.
    branches: The chains of units.
    pool: "average" of the 3x3 pixels that are inside; "max"; or "reduce", the maximum at every other place.
    pooled: Features of the unit behind the pooling; 0 for none.
  """

  name: str
  branches: tuple[Chain, ...]
  pool: str
  pooled: int = 0


def _unit(name: str, features: int, height: int = 1, width: int = 1, stride: int = 1) -> Unit:
  return Unit(name, features, (height, width), stride, is_padded=stride == 1)


def pooled_unit(block: Block) -> Unit:
  """Return the unit behind a block's pooling, which it has where `pooled` is not 0."""
  return _unit("branch_pool", block.pooled)


def _block_35(name: str, pooled: int) -> Block:
  double = (_unit("branch3x3dbl_2", 96, 3, 3), _unit("branch3x3dbl_3", 96, 3, 3))
  branches = (
    (_unit("branch1x1", 64),),
    (_unit("branch5x5_1", 48), _unit("branch5x5_2", 64, 5, 5)),
    (_unit("branch3x3dbl_1", 64), *double),
  )
  return Block(name, branches, "average", pooled)


def _block_17(name: str, inner: int) -> Block:
  single = (_unit("branch7x7_2", inner, 1, 7), _unit("branch7x7_3", 192, 7, 1))
  turns = itertools.cycle(((7, 1), (1, 7)))
  widths = (inner, inner, inner, 192)
  double = (_unit(f"branch7x7dbl_{i}", features, *next(turns)) for i, features in enumerate(widths, start=2))
  branches = (
    (_unit("branch1x1", 192),),
    (_unit("branch7x7_1", inner), *single),
    (_unit("branch7x7dbl_1", inner), *double),
  )
  return Block(name, branches, "average", 192)


def _block_8(name: str, pool: str) -> Block:
  cross = lambda first, second: (_unit(first, 384, 1, 3), _unit(second, 384, 3, 1))
  double = (_unit("branch3x3dbl_1", 448), _unit("branch3x3dbl_2", 384, 3, 3))
  branches = (
    (_unit("branch1x1", 320),),
    (_unit("branch3x3_1", 384), cross("branch3x3_2a", "branch3x3_2b")),
    (*double, cross("branch3x3dbl_3a", "branch3x3dbl_3b")),
  )
  return Block(name, branches, pool, 192)


STEM = (
  (_unit("Conv2d_1a_3x3", 32, 3, 3, 2), Unit("Conv2d_2a_3x3", 32, (3, 3), 1, False)),
  (_unit("Conv2d_2b_3x3", 64, 3, 3),),
  (_unit("Conv2d_3b_1x1", 80), Unit("Conv2d_4a_3x3", 192, (3, 3), 1, False)),
)
_REDUCE_35 = (
  _unit("branch3x3dbl_1", 64),
  _unit("branch3x3dbl_2", 96, 3, 3),
  _unit("branch3x3dbl_3", 96, 3, 3, 2),
)
_REDUCE_17 = (
  *(_unit("branch7x7x3_1", 192), _unit("branch7x7x3_2", 192, 1, 7), _unit("branch7x7x3_3", 192, 7, 1)),
  _unit("branch7x7x3_4", 192, 3, 3, 2),
)
BLOCKS = (
  *(_block_35("Mixed_5b", 32), _block_35("Mixed_5c", 64), _block_35("Mixed_5d", 64)),
  Block("Mixed_6a", ((_unit("branch3x3", 384, 3, 3, 2),), _REDUCE_35), "reduce"),
  *(_block_17("Mixed_6b", 128), _block_17("Mixed_6c", 160), _block_17("Mixed_6d", 160)),
  _block_17("Mixed_6e", 192),
  Block("Mixed_7a", ((_unit("branch3x3_1", 192), _unit("branch3x3_2", 320, 3, 3, 2)), _REDUCE_17), "reduce"),
  *(_block_8("Mixed_7b", "average"), _block_8("Mixed_7c", "max")),
)


def units() -> Iterator[tuple[str, int, Unit]]:
  """Yield every unit with its full name and the channels it takes."""
  channels = 3
  for unit in itertools.chain.from_iterable(STEM):
    yield unit.name, channels, unit
    channels = unit.features
  for block in BLOCKS:
    given, joined = channels, 0 if block.pooled else channels  # a reduction joins the maxima of what it takes
    pooled = ((pooled_unit(block),),) if block.pooled else ()
    for chain in (*block.branches, *pooled):
      width = given
      for link in chain:
        side_by_side = (link,) if isinstance(link, Unit) else link
        for unit in side_by_side:
          yield f"{block.name}.{unit.name}", width, unit
        width = sum(unit.features for unit in side_by_side)
      joined += width
    channels = joined
