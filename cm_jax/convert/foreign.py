"""What a foreign checkpoint says, in its authors' words, and the strict step from there to our parameters."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cm_jax.convert.readers.pickles import Refused
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError, one_of
from cm_jax.models import Model
from cm_jax.networks import NETWORKS, as_net, init_params
from cm_jax.networks.base import sizes_of
from cm_jax.storage import weights
from cm_jax.types import KINDS, NoiseRange

# fields that follow from image_shape and num_classes, and so are not part of a network's config
_STRUCTURAL = ("img_resolution", "in_channels", "label_dim", "name", "parent")


@dataclasses.dataclass(frozen=True)
class Foreign:
  """A checkpoint as read: arrays under their authors' names, in their layout, and the config that fits.

  Attributes:
    arrays: The network's parameters; names joined with ".".
    network: `{"name": ..., fields}` of `NETWORKS`.
    precond: `{"name": ..., fields}` of `PRECONDS`.
    noise: sigma_min, sigma_max, sigma_data, rho.
    image_shape: (H, W, C).
    num_classes: 0 if unconditional.
    layout: `layout(name, array)` brings an array into our layout.
    sigmas_by_nfe: Noise levels its authors publish, by number of evaluations.
    peer, licence: Where it comes from.
    kind: One of `KINDS`; None where nothing says it.
    guidable: Whether it was trained without its label too; None where nothing says it.
    matmul_precision: Of its float32 products, one of `PRECISIONS`.
    clip, renoise: How its authors sample it, as in a Model; None where nothing says it.
    class_names: In the order of the classes' numbers; () where the file has none.
    assumed: What the file does not say and was taken as usual, in words.
  """

  arrays: Mapping[str, np.ndarray]
  network: Mapping[str, Any]
  precond: Mapping[str, Any]
  noise: Mapping[str, float]
  image_shape: tuple[int, int, int]
  num_classes: int
  layout: Callable[[str, np.ndarray], np.ndarray]
  peer: str
  licence: str
  kind: str | None = None
  sigmas_by_nfe: Mapping[int, Sequence[float]] = dataclasses.field(default_factory=dict)
  guidable: bool | None = None
  matmul_precision: str = "highest"
  clip: bool | None = None
  renoise: str | None = None
  class_names: Sequence[str] = ()
  assumed: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Choices:
  """What the user says because no file does.

  Attributes:
    tree: Which parameters of a jcm state: "params_ema", "target_params" or "params".
    precond: Replaces keys of the preconditioning the format has; None takes it as it is.
    kind: What the model is, one of `KINDS`; None takes what the format or the file's name says.
    image_size: Side of the images; None takes the one from the file, or the usual one.
    network: Fields of the network to set, such as `{"num_head_channels": 64}`.
    load: Reads one of our own folders: `(params, info)` as `weights.load_weights`.

  Raises:
    UserError: An unknown kind.
  """

  tree: str = "params_ema"
  precond: Mapping[str, Any] | None = None
  kind: str | None = None
  image_size: int | None = None
  network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  load: Callable[[Any], tuple[Mapping[str, Any], Mapping[str, Any]]] = weights.load_weights

  def __post_init__(self):
    if self.kind is not None and self.kind not in KINDS:
      raise UserError("kind", self.kind, one_of(KINDS, self.kind))

  def unsaid(self, precond: str, kind: str) -> tuple[str, ...]:
    """Return in words what of these two was taken from the file's name: what the user did not say.

    >>> Choices(kind="consistency").unsaid("edm", "diffusion")
    ("precond edm, from the file's name",)
    """
    said = {f"precond {precond}": self.precond, f"kind {kind}": self.kind}
    return tuple(f"{words}, from the file's name" for words, choice in said.items() if choice is None)

  def apply(self, foreign: Foreign) -> Foreign:
    """Return the checkpoint as the user says it is."""
    size = self.image_size or foreign.image_shape[0]
    return dataclasses.replace(
      foreign,
      kind=self.kind or foreign.kind,
      precond={**foreign.precond, **(self.precond or {})},
      image_shape=(size, size, foreign.image_shape[2]),
      network={**foreign.network, **self.network},
    )


AS_IT_IS = Choices()


def by_name(path: Path) -> tuple[str, str]:
  """Return the preconditioning and the kind that OpenAI's files are called by: edm... is a diffusion model.

  >>> by_name(Path("edm_cat256_ema.pt")), by_name(Path("ct_cat256.pt"))
  (('edm', 'diffusion'), ('boundary', 'consistency'))
  """
  return ("edm", "diffusion") if path.name.startswith("edm") else ("boundary", "consistency")


def torch_layout(embeddings: Sequence[str] = ()) -> Callable[[str, np.ndarray], np.ndarray]:
  """Return the map from PyTorch's layout to ours: OIHW -> HWIO, [out, in] -> [in, out]; `embeddings` stay.

  >>> torch_layout()("weight", np.zeros((5, 4, 3, 3))).shape
  (3, 3, 4, 5)
  """

  def layout(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
      return array.transpose(2, 3, 1, 0)
    if array.ndim == 3:  # a convolution over the pixels as a sequence
      return array.transpose(2, 1, 0)[None]
    return array.T if array.ndim == 2 and name not in embeddings else array

  return layout


def own_layout(name: str, array: np.ndarray) -> np.ndarray:
  """Return the array: it is in our layout already."""
  return array


def build_network(network: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int) -> Any:
  """Return the Flax module of a config.

  Raises:
    UserError: An unknown name, field or value.
  """
  fields = dict(network)
  name = fields.pop("name", None)
  if name not in NETWORKS:
    raise Refused(f"a known architecture ({', '.join(sorted(NETWORKS))}), not {str(name)[:50]}")
  known = {field.name for field in dataclasses.fields(NETWORKS[name])}
  unknown = sorted(set(fields) - known)
  if unknown:
    near = difflib.get_close_matches(unknown[0], known, n=1)
    raise Refused(
      f"an architecture known here: {name} has no option {unknown[0][:50]}"
      + (f" (but {near[0]})" if near else "")
    )
  given = {**sizes_of(image_shape, num_classes), **fields}
  return NETWORKS[name](**{key: value for key, value in given.items() if key in known})


def build_model(foreign: Foreign, allow_nonfinite: bool = False) -> Model:
  """Return a checkpoint as a model: every parameter filled, every array used.

  Args:
    foreign: The checkpoint.
    allow_nonfinite: Go on where a weight is NaN or infinite.

  Raises:
    Refused, UserError: It is not of the network or preconditioning it is said to have; nothing says its kind.
  """
  if foreign.kind is None:
    expected = "diffusion or consistency, what the model was trained to be: nothing in the checkpoint says it"
    raise UserError("kind", "", expected)
  noise = NoiseRange(**foreign.noise)
  precond = _build_precond(foreign, noise)
  module = build_network(foreign.network, foreign.image_shape, foreign.num_classes)
  return Model(
    preconditioned=Preconditioned(as_net(module), precond, foreign.matmul_precision),
    guidable=foreign.guidable,
    matmul_precision=foreign.matmul_precision,
    params=fill(foreign, module, allow_nonfinite),
    kind=foreign.kind,
    noise=noise,
    image_shape=foreign.image_shape,
    num_classes=foreign.num_classes,
    network=full_config(foreign.network, module),
    precond=dict(foreign.precond),
    sigmas_by_nfe={nfe: tuple(levels) for nfe, levels in foreign.sigmas_by_nfe.items()},
    clip=foreign.clip,
    renoise=foreign.renoise,
    class_names=tuple(foreign.class_names),
  )


def _build_precond(foreign: Foreign, noise: NoiseRange) -> Any:
  fields = dict(foreign.precond)
  name = fields.pop("name", None)
  if name not in PRECONDS:
    raise Refused(f"a known preconditioning: {one_of(PRECONDS, name)}")
  try:
    return PRECONDS[name](noise, **fields)
  except TypeError as error:
    raise Refused(f"the fields of the preconditioning {name} ({error})") from None


def full_config(network: Mapping[str, Any], module: Any) -> dict[str, Any]:
  """Return the network's config with every field written out: later defaults change no file's meaning."""
  names = (field.name for field in dataclasses.fields(module) if field.name not in _STRUCTURAL)
  fields = {name: getattr(module, name) for name in names}
  if fields.get("out_channels") == module.in_channels:
    fields.pop("out_channels", None)
  return {"name": network["name"], **fields}


def abstract_params(module: Any, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
  """Return the shape of every parameter, names joined with "/", without computing or allocating anything."""
  tree = jax.eval_shape(lambda: init_params(module, jax.random.key(0), image_shape))
  return {name: leaf.shape for name, leaf in weights.flatten(tree).items()}


def fill(foreign: Foreign, module: Any, allow_nonfinite: bool = False) -> dict[str, Any]:
  """Return `{"net": ...}` with every parameter of the network taken from the checkpoint.

  Args:
    foreign: The checkpoint.
    module: Its network, from `build_network`.
    allow_nonfinite: Go on where a weight is NaN or infinite.

  Raises:
    Refused: A parameter is missing or left over, has another shape, or is not finite; named.
  """
  shapes = abstract_params(module, foreign.image_shape)
  targets = {name.replace("/", "."): name for name in shapes}
  missing = sorted(targets.keys() - foreign.arrays.keys())
  unused = sorted(foreign.arrays.keys() - targets.keys())
  if missing or unused:
    difference = f"missing {_some(missing)}; not part of it {_some(unused)}"
    raise Refused(f"the parameters of {foreign.network['name']}: {difference}")
  filled, nonfinite = {}, []
  for name, target in targets.items():
    array = foreign.layout(name, foreign.arrays[name])
    if array.shape != shapes[target]:
      raise Refused(f"{name} of shape {shapes[target]}, not {array.shape}, both in our layout")
    # a bfloat16 array has numpy kind "V"
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
      raise Refused(f"{name} as floating-point numbers, not {array.dtype.name}")
    filled[f"net/{target}"] = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    if not np.isfinite(filled[f"net/{target}"]).all():
      nonfinite.append(name)
  if nonfinite and not allow_nonfinite:
    raise Refused(f"finite weights, not NaN or infinity in {_some(nonfinite)} (allow_nonfinite goes on)")
  return weights.unflatten(filled)


def check_size(arrays: Mapping[str, np.ndarray], file_size: int) -> None:
  """Refuse arrays that together are larger than the file: tensors that share numbers claim a large network.

  Raises:
    Refused: They are.
  """
  total = sum(math.prod(array.shape) * array.itemsize for array in arrays.values())
  if total > file_size:
    raise Refused(f"a whole file: its arrays claim {total} bytes, the file has {file_size}")


def _some(names: Sequence[str]) -> str:
  shown = ", ".join(name[:100] for name in names[:3]) or "nothing"
  return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
