"""What every architecture is told when it is made: the fields they share."""

from collections.abc import Callable
from typing import ClassVar

from cm_jax.errors import UserError
from cm_jax.networks.module import Module
from cm_jax.types import Params


class Network(Module, kw_only=True):
  """A raw network F(x [B,H,W,C], c_noise [B], condition) -> [B,H,W,out_channels], in at least float32.

  Args:
    img_resolution: Height and width of the image.
    in_channels, out_channels: Channels of x and of F.
    label_dim: Number of classes, 0 for an unconditional network.
    augment_dim: Width of the augmentation label, 0 for none.
    guidance_embedding: Condition on a guidance scale too, as sCM does (1 where none is given). Starts without
      effect.
    second_time: Condition on a second time too, where a flow map ends: an angle in [0, pi/2), 0 where none is
      given. Starts without effect: a network of one time becomes one of two, D(x, sigma) for every end.
    dtype: What the blocks compute in; parameters, embeddings, statistics and the output stay float32.
    remat: Recompute each block in the backward pass instead of storing its activations.
    remat_policy: What of a block is stored nonetheless (`remat.py`).
    kernels: How layers are computed where there is a choice (`kernels.py`); the same function.

  Attributes:
    projection: What is to be applied to the params after every update; None where nothing is.
    shown_by_shapes: Fields that matter to the shapes or the first values of parameters only: with the same
      shapes, and values from elsewhere, they make the same function. For those that may be left to a default.
  """

  img_resolution: int
  in_channels: int
  out_channels: int
  label_dim: int = 0
  augment_dim: int = 0
  guidance_embedding: bool = False
  second_time: bool = False
  dtype: str = "float32"
  remat: bool = False
  remat_policy: str = "blocks"
  kernels: str = "auto"

  projection: ClassVar[Callable[[Params], Params] | None] = None
  shown_by_shapes: ClassVar[tuple[str, ...]] = ()


def sizes_of(image_shape: tuple[int, int, int], num_classes: int) -> dict[str, int]:
  """Return the fields of a network that the data decide.

  Raises:
    UserError: The images are not square.

  >>> sizes_of((8, 8, 1), 10)
  {'img_resolution': 8, 'in_channels': 1, 'out_channels': 1, 'label_dim': 10}
  """
  height, width, channels = image_shape
  if height != width:
    raise UserError("image_shape", image_shape, "square images (crop or resize them first)")
  return {
    "img_resolution": height,
    "in_channels": channels,
    "out_channels": channels,
    "label_dim": num_classes,
  }
