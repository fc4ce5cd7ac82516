"""EDM's and EDM2's checkpoints (NVlabs/edm, NVlabs/edm2): which of our networks they are.

Facts only: names of classes, arguments and parameters. The weights are under CC BY-NC-SA 4.0.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cm_jax.convert.foreign import AS_IT_IS, Choices, Foreign, check_size, torch_layout
from cm_jax.convert.readers.persistence import Snapshot, read_snapshot
from cm_jax.convert.readers.pickles import Bounded, Refused
from cm_jax.diffusion.precond import IDDPM, PRECONDS
from cm_jax.types import Domain, NoiseRange

LICENCE = "CC BY-NC-SA 4.0"
_HEAD = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")
BOUNDS = ("epsilon_t", "sigma_min", "sigma_max")
_COMMON = ("img_resolution", "img_channels", "label_dim", "use_fp16", "model_type")


@dataclasses.dataclass(frozen=True)
class Wrapper:
  """A preconditioning class of the peer: ours, its own arguments (defaults as published), its network."""

  precond: str
  own: Mapping[str, float]
  network: str
  prefix: str = "model."
  keeps: tuple[str, ...] = ()  # arguments that are fields of our preconditioning too
  widens: int = 1  # output channels over image channels


WRAPPERS = {
  "EDMPrecond": Wrapper("edm", {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5}, "DhariwalUNet"),
  "ECMPrecond": Wrapper(
    "ect", {"sigma_min": 0.003, "sigma_max": math.inf, "sigma_data": 0.5}, "DhariwalUNet"
  ),
  "VPPrecond": Wrapper(
    "vp",
    {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "SongUNet",
    keeps=("beta_d", "beta_min", "M", "epsilon_t"),
  ),
  "VEPrecond": Wrapper(
    "ve", {"sigma_min": 0.02, "sigma_max": 100}, "SongUNet", keeps=("sigma_min", "sigma_max")
  ),
  "iDDPMPrecond": Wrapper(
    "iddpm", {"C_1": 0.001, "C_2": 0.008, "M": 1000}, "DhariwalUNet", keeps=("C_1", "C_2", "M"), widens=2
  ),
  "Precond": Wrapper("edm", {"sigma_data": 0.5, "logvar_channels": 128}, "UNet", prefix="unet."),
}
NETWORKS_BY_CLASS = {"SongUNet": "songunet", "DhariwalUNet": "adm", "UNet": "edm2"}


def read(path: Path, choices: Choices = AS_IT_IS) -> Foreign:
  """Read an EDM or EDM2 snapshot ("edm-cifar10-32x32-cond-vp.pkl", "edm2-img64-s-....pkl").

  Raises:
    Refused: Another class than those of EDM and EDM2, or a file that is not safe or not whole.
  """
  wrappers = {name: wrapper for name, wrapper in WRAPPERS.items() if name != "ECMPrecond"}
  return from_snapshot(read_file(path), wrappers, "EDM")


def read_file(path: Path) -> Snapshot:
  """Read the snapshot and bound its arrays by the file's size."""
  with open(path, "rb") as file:
    snapshot = read_snapshot(bounded := Bounded(file))
    check_size(snapshot.arrays, bounded.size)
  return snapshot


def from_snapshot(snapshot: Snapshot, wrappers: Mapping[str, Wrapper], peer: str) -> Foreign:
  """Describe a snapshot whose class is one of `wrappers`.

  Raises:
    Refused: It is none of them.
  """
  if snapshot.cls not in wrappers:
    known = f"a network of class {', '.join(wrappers)} for the format {peer.lower()}"
    raise Refused(f"{known}, not {snapshot.cls[:50]}")
  return describe(snapshot.cls, snapshot.kwargs, snapshot.arrays)


def describe(cls: str, kwargs: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Foreign:
  """Say which network and preconditioning a wrapper class with these constructor arguments is.

  Args:
    cls: A key of `WRAPPERS`.
    kwargs: What the wrapper was made with.
    arrays: Its state dict: parameters and buffers.

  Raises:
    Refused: An argument or buffer that is not known.
  """
  wrapper = WRAPPERS[cls]
  own = {**wrapper.own, **{key: _number(key, value) for key, value in kwargs.items() if key in wrapper.own}}
  fields = {key: value for key, value in kwargs.items() if key not in wrapper.own and key not in _COMMON}
  network_cls = kwargs.get("model_type", wrapper.network)
  if not isinstance(network_cls, str) or network_cls not in NETWORKS_BY_CLASS:
    given = network_cls[:50] if isinstance(network_cls, str) else "?"
    raise Refused(f"a known architecture ({', '.join(NETWORKS_BY_CLASS)}), not {given}")
  _check_fields(fields, len(arrays))
  channels, resolution = _size("img_channels", kwargs), _size("img_resolution", kwargs)
  if wrapper.widens != 1:
    fields["out_channels"] = channels * wrapper.widens
  taps = fields.get("resample_filter", [1, 1])
  peer = "ECT" if cls == "ECMPrecond" else "EDM2" if cls == "Precond" else "EDM"
  # what only bounds the noise levels is said where it is unusual
  said = [key for key in wrapper.keeps if key not in BOUNDS or own[key] != wrapper.own[key]]
  precond = {key: int(own[key]) if key == "M" else own[key] for key in said}
  domain = PRECONDS[wrapper.precond](NoiseRange(), **precond).domain
  kept = {}
  for name, array in arrays.items():
    if name.endswith(".resample_filter"):
      _check_taps(name, array, taps)
    elif name == "u" and cls == "iDDPMPrecond":
      levels = IDDPM(NoiseRange(), own["C_1"], own["C_2"], int(own["M"])).levels()
      if array.shape != levels.shape or not np.allclose(array, levels, rtol=1e-3):
        raise Refused("u to be the noise levels that C_1, C_2 and M give")
    elif name not in _HEAD:  # EDM2's uncertainty head belongs to its loss, not to the network
      if not name.startswith(wrapper.prefix):
        raise Refused(f"parameters called {wrapper.prefix}..., not {name[:100]}")
      kept[name.removeprefix(wrapper.prefix)] = array
  return Foreign(
    arrays=kept,
    network={"name": NETWORKS_BY_CLASS[network_cls], **fields},
    precond={"name": wrapper.precond, **precond},
    noise=_noise(domain, own),
    image_shape=(resolution, resolution, channels),
    num_classes=_size("label_dim", kwargs, 0),
    layout=torch_layout(),
    peer=peer,
    licence=LICENCE,
    kind="consistency" if peer == "ECT" else "diffusion",
  )


def _noise(domain: Domain | None, own: Mapping[str, float]) -> dict[str, float]:
  # EDM's samplers run from 80 to 0.002, as far as the network goes
  low, high = domain[:2] if domain else (own.get("sigma_min", 0), own.get("sigma_max", math.inf))
  sigma_data = own.get("sigma_data", 0.5)
  return {"sigma_min": max(low, 0.002), "sigma_max": min(high, 80.0), "sigma_data": sigma_data, "rho": 7.0}


def _number(key: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
    raise Refused(f"a number as {key}")
  return value


def _size(key: str, kwargs: Mapping[str, Any], least: int = 1) -> int:
  value = kwargs.get(key, 0)
  if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 16:
    raise Refused(f"{key} from {least} to {1 << 16}")
  return value


def _check_fields(fields: Mapping[str, Any], arrays: int) -> None:
  """Refuse a network that cannot fit the arrays before its shapes are worked out: many blocks cost time."""
  for key, value in fields.items():
    items = value if isinstance(value, (list, tuple)) else [value]
    if not all(item is None or isinstance(item, (bool, int, float, str)) for item in items):
      raise Refused(f"numbers and words as {str(key)[:50]}")
    if any(isinstance(item, int) and abs(item) > 1 << 16 for item in items) or len(items) > 64:
      raise Refused(f"a plausible {str(key)[:50]}")
  levels, blocks = fields.get("channel_mult"), fields.get("num_blocks", 1)
  if (
    not isinstance(blocks, int) or blocks * (len(levels) if isinstance(levels, (list, tuple)) else 1) > arrays
  ):
    raise Refused(f"num_blocks that fits {arrays} arrays")


def _check_taps(name: str, array: np.ndarray, taps: Any) -> None:
  square = np.outer(taps, taps)
  if array.shape != (1, 1, *square.shape) or not np.allclose(array, square / square.sum(), atol=1e-3):
    raise Refused(f"{name} to be the filter {taps} the network was made with")
