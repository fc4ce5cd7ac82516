"""Our own runs and weights folders, through the same strict door as everybody else's."""

from pathlib import Path

from cm_jax.convert.foreign import Choices, Foreign, own_layout
from cm_jax.convert.readers.pickles import Refused
from cm_jax.storage import weights


def read(path: Path, choices: Choices) -> Foreign:
  """Read a weights folder, or whatever folder `choices.load` reads.

  Raises:
    UserError: It cannot be read.
    Refused: Its images are not square.
  """
  params, info = choices.load(path)
  height, width, channels = info["image_shape"]
  if height != width:
    raise Refused("square images")
  return Foreign(
    arrays={name.replace("/", "."): array for name, array in weights.flatten(params["net"]).items()},
    network=info["network"],
    precond=info["precond"],
    noise={key: info[key] for key in weights.NOISE if key in info},
    image_shape=(height, width, channels),
    num_classes=info["num_classes"],
    layout=own_layout,
    sigmas_by_nfe=info["sigmas_by_nfe"],
    peer=info.get("peer", "cm_jax"),
    licence=info["licence"],
    kind=info["kind"],
    guidable=info.get("guidable"),
    matmul_precision=info.get("matmul_precision", "default"),
    clip=info.get("clip"),
    renoise=info.get("renoise"),
    class_names=tuple(info.get("class_names", ())),
  )
