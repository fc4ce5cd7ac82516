"""Networks with their preconditioning, and the weights of runs and weights folders:
`load_model(path) -> Model`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from flax.errors import FlaxError

from cm_jax import config as config_lib
from cm_jax.assembly.best import best_checkpoint
from cm_jax.assembly.complete import current
from cm_jax.assembly.components import call, component_name, construct, split
from cm_jax.assembly.data import framing_of
from cm_jax.assembly.identity import check_unchanged
from cm_jax.assembly.tuned import tuned_levels
from cm_jax.data.sources import is_code
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.precond import PRECONDS
from cm_jax.errors import UserError, damage_told, one_of, within
from cm_jax.models import Model, drops_labels
from cm_jax.networks import NETWORKS, as_net, init_params
from cm_jax.networks.base import sizes_of
from cm_jax.notices import notice
from cm_jax.objectives import OBJECTIVES
from cm_jax.sampling.images import sample
from cm_jax.storage import published, run, weights
from cm_jax.types import KINDS, Array, NoiseRange, Params

if TYPE_CHECKING:
  from cm_jax.training.checkpoint import CheckpointStore


def build_network(
  network: Any,
  precond: Any,
  noise: NoiseRange,
  image_shape: tuple[int, int, int],
  num_classes: int,
  matmul_precision: str = "default",
) -> tuple[Preconditioned, Callable[[Array], Params]]:
  """Return a preconditioned network and its init; `init(key)` draws `{"net": ...}`.

  Raises:
    UserError: An unknown name or field, or an image the network cannot take.
  """
  with within("config.data"):
    sizes = sizes_of(image_shape, num_classes)
  if not isinstance(network, str) and "out_channels" in network:  # iDDPM's networks give a variance too
    del sizes["out_channels"]
  module = construct(NETWORKS, network, "config.network", **sizes)
  scalings = construct(PRECONDS, precond, "config.precond", noise=noise)

  def init(key: Array) -> Params:
    try:
      with within("config.network"):
        return {"net": init_params(module, key, image_shape)}
    except (ArithmeticError, AssertionError, FlaxError, IndexError, TypeError, ValueError) as error:
      # Each network says what it can of its fields by itself; the rest shows only when shapes are worked out.
      fields = {} if isinstance(network, str) else dict(network)
      numbers = {key: value for key, value in fields.items() if not isinstance(value, (str, bool))}
      said = str(error).partition("\n")[0][:120]
      expected = f"sizes that fit together, and images of {image_shape} ({type(error).__name__}: {said})"
      raise UserError("config.network", numbers, expected) from error

  return Preconditioned(as_net(module), scalings, matmul_precision), init


def load_model(
  path: epath.PathLike, step: int | str = -1, average: str = "ema", kind: str | None = None
) -> Model:
  """Load weights to sample, evaluate or teach with: from a run folder or a weights folder.

  Args:
    path: A workdir of `train`, or a folder with weights.safetensors and model.json; or as
      `storage/published.py` finds them: the name of weights that come with cm_jax ("digits-cd"), an https
      address of a zip with its sha256, `hf:owner/name`.
    step: Of a run: -1 for the newest checkpoint, "best" for the best by what was measured while it trained.
    average: Of a run: the name of an average, or "params" for the raw parameters.
    kind: What the model is, where an old weights folder does not say it.

  Raises:
    UserError: Neither kind of folder, no such step or average, or weights that do not fit;
      a kind that is unknown or not the one stored.
  """
  if kind is not None and kind not in KINDS:
    raise UserError("kind", kind, one_of(KINDS, kind))
  name = published.pinned(path)
  path = published.folder_of(name)
  if weights.is_weights_folder(path):
    return _load_weights_folder(path, str(name), step, kind)
  stored = run.read_config(path)
  if stored is None:
    expected = (
      "a run folder (config.json, checkpoints/) or a weights folder (model.json, weights.safetensors)"
    )
    if epath.Path(path).is_file():
      expected += ": `convert` makes a weights folder of a published checkpoint"
    raise UserError("model", str(path), expected)
  return _load_run(path, stored, step, average, kind)


def _load_run(
  path: epath.PathLike, stored: Mapping[str, Any], step: int | str, average: str, kind: str | None
) -> Model:
  """Return the weights of a step; for -1 of the newest that can be read."""
  from cm_jax.training.checkpoint import CheckpointStore, Damaged  # with Orbax, a quarter of a second

  store = CheckpointStore(path)
  if isinstance(step, str):
    if step != "best":
      raise UserError("step", step, "a step, -1 for the newest, or best")
    step = best_checkpoint(path, store.steps()).step
  steps = [store.choose(step)] if step != -1 else store.steps()[::-1] or [store.choose()]
  failures: list[Damaged] = []
  try:
    for number in steps:
      try:
        model = _load_step(path, store, stored, number, average, kind)
      except Damaged as error:
        failures.append(error)
        continue
      for failure in failures:
        notice(f"{failure.value} is damaged, step {number} is used ({failure.expected})")
      return model
  finally:
    store.close()
  raise failures[0]


def _load_step(
  path: epath.PathLike,
  store: "CheckpointStore",
  stored: Mapping[str, Any],
  step: int,
  average: str,
  kind: str | None,
) -> Model:
  extra = store.extra(step)
  if "config" in extra:
    file = str(run.RunFolder.at(path).config)
    check_unchanged(stored, extra["config"], str(store.folder / str(step)), file)
  skeleton = model_of(stored, {})
  _check_kind(kind, skeleton.kind)
  like = jax.eval_shape(lambda: init_of(skeleton)(jax.random.key(0)))
  params = store.restore_params(step, like, average)
  check_finite(params, f"{store.folder / str(step)}, {average}")
  provenance = {
    **skeleton.provenance,
    "path": str(path),
    "step": step,
    "average": average,
    "dataset_fingerprint": extra["fingerprint"],
  }
  return model_of(stored, {"net": params["net"]}, provenance, run.read_sigmas(path))


def model_of(
  stored: Mapping[str, Any],
  params: Params,
  provenance: Mapping[str, Any] | None = None,
  sigmas_by_nfe: Mapping[int, tuple[float, ...]] | None = None,
) -> Model:
  """Return the model that a run's stored config describes, with params of it.

  Args:
    stored: config.json, of any age.
    params: `{"net": ...}`.
    provenance: What is known of the weights; by default what the config says.
    sigmas_by_nfe: Tuned noise levels, which come before those of the config.

  Raises:
    UserError: A config that does not fit together.
  """
  with damage_told("config.json", "the config that training wrote"):
    return _model_of(stored, params, provenance, sigmas_by_nfe)


def _model_of(
  stored: Mapping[str, Any],
  params: Params,
  provenance: Mapping[str, Any] | None,
  sigmas_by_nfe: Mapping[int, tuple[float, ...]] | None,
) -> Model:
  config = current(stored)
  noise = call(NoiseRange, config.noise, "config.noise")
  shape, num_classes = tuple(config.data.image_shape), config.data.num_classes
  if len(shape) != 3:
    raise UserError("config.data.image_shape", shape, "[height, width, channels], as training wrote it")
  precision = config.matmul_precision
  network, _ = build_network(config.network, config.precond, noise, shape, num_classes, precision)
  known = {"path": None, "step": None, "average": None, "dataset_fingerprint": None}
  # a source that is code counts only where the user names it: nothing that a stored run says is run
  source = None if is_code(config.data.source) else config.data.source
  framing = dataclasses.asdict(framing_of(config))
  about = {"config_sha256": run.identity(stored), "source": source, "framing": framing}
  kind = stored.get("kind")  # which counts where the objective is somebody's own code, not run for a model
  if (name := component_name(config.objective)) in OBJECTIVES or kind not in KINDS:
    kind = OBJECTIVES[split(OBJECTIVES, {"name": name}, "config.objective")[0]].trains
  sampler = config_lib.plain_json(config.sampler)
  return Model(
    network, params, kind, noise, shape, num_classes,
    config_lib.plain_json(config.network), config_lib.plain_json(config.precond),
    sigmas_by_nfe={**tuned_levels(config.sigmas_by_nfe, noise), **(sigmas_by_nfe or {})}, sampler=sampler,
    provenance={**known, **about, **(provenance or {})}, class_names=tuple(config.data.class_names),
    guidable=drops_labels(config) if num_classes else None, matmul_precision=precision, draw=sample,
    clip=sampler.get("clip"), renoise=sampler.get("renoise"),
  )  # fmt: skip


def network_of(path: epath.PathLike) -> dict[str, Any]:
  """Return the network section of a run or weights folder, without loading its weights.

  Raises:
    UserError: Neither kind of folder.
  """
  path = published.folder_of(path)
  if weights.is_weights_folder(path):
    section = weights.load_info(path)["network"]
  else:
    stored = run.read_config(path)
    if stored is None:
      raise UserError("model", str(path), "a run folder or a weights folder")
    section = current(stored).network
  return config_lib.plain_json(section)


def init_of(model: Model) -> Callable[[Array], Params]:
  """Return the init of a model's network."""
  return build_network(model.network, model.precond, model.noise, model.image_shape, model.num_classes)[1]


def _load_weights_folder(path: epath.PathLike, name: str, step: int | str, kind: str | None) -> Model:
  if step != -1:
    raise UserError("step", step, "no step: a weights folder holds one set of weights")
  params, info = weights.load_weights(path)
  _check_kind(kind, info["kind"])
  noise = weights.noise_of(info)
  precision = info.get("matmul_precision", "default")
  with damage_told(str(path), "a network and a preconditioning in model.json"):
    network, init = build_network(
      info["network"], info["precond"], noise, info["image_shape"], info["num_classes"], precision
    )
  check_shapes(params, jax.eval_shape(lambda: init(jax.random.key(0))), str(path))
  check_finite(params, str(path))
  unknown = ("step", "average", "config_sha256", "dataset_fingerprint", "source", "framing")
  return Model(
    network, jax.device_put(params), info["kind"] or kind, noise, info["image_shape"],
    info["num_classes"], info["network"], info["precond"],
    sigmas_by_nfe={nfe: tuple(levels) for nfe, levels in info["sigmas_by_nfe"].items()},
    provenance={"path": name, **dict.fromkeys(unknown)}, class_names=tuple(info.get("class_names", ())),
    guidable=info.get("guidable"), matmul_precision=precision, draw=sample,
    clip=info.get("clip"), renoise=info.get("renoise"),
  )  # fmt: skip


def _check_kind(given: str | None, stored: str | None) -> None:
  if given is not None and stored is not None and given != stored:
    raise UserError("kind", given, f"{stored}, which the model is by its own files")


def check_finite(params: Params, where: str) -> None:
  """Check that no weight is NaN or infinite: every image would be.

  Raises:
    UserError: Names the first parameter that has such numbers.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    bad = np.asarray(leaf)[~np.isfinite(leaf)]
    if len(bad):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise UserError(f"{where}: {name}", float(bad[0]), f"finite weights, unlike {len(bad)} of {leaf.size}")


def check_shapes(params: Params, like: Params, where: str) -> None:
  """Check that params have the names and shapes of `like`.

  Raises:
    UserError: Names the first parameter that is missing, left over or of another shape.
  """
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  have = {name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  want = {name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
  for key in sorted(have.keys() | want.keys()):
    if have.get(key) != want.get(key):
      expected = f"shape {want[key]}" if key in want else "no such parameter"
      raise UserError(f"{where}: {key}", have.get(key, "missing"), expected)
