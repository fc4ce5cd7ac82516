"""Snapshots of the power-function averages: light files, from which averages of any width are made.

`workdir/snapshots/step_00001200.safetensors` holds the network of every such average after that step,
float32, under the names "AVERAGE/net/...", with the sha256 of all it says. Files are written whole or not at
all, always the same bytes for the same averages, and read one tensor at a time.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cm_jax.errors import DAMAGE, UserError, within
from cm_jax.models import Experiment
from cm_jax.storage import bounded, digests, whole
from cm_jax.storage.run import RunFolder
from cm_jax.storage.weights import flatten, save_arrays, unflatten
from cm_jax.training import sharding
from cm_jax.training.averages import posthoc
from cm_jax.training.averages.track import read_average
from cm_jax.types import Params, TrainState

if TYPE_CHECKING:
  from cm_jax.training.loop import Hook

FORMAT = 2  # 1 had no sha256
_METADATA = "cm_jax"  # one key, since safetensors writes several in any order


class Snapshot(NamedTuple):
  """A stored file: its step, the relative width of each average in it, and its `_sha256` (format 1: None)."""

  path: epath.Path
  step: int
  sigma_rels: dict[str, float]
  sha256: str | None = None


class Recipe(NamedTuple):
  """How an average is made: sum_i weights[i] * stored averages, and how far its profile is off."""

  step: int
  sigma_rel: float
  weights: np.ndarray
  profile_error: float


def power_widths(averages: Mapping[str, Any]) -> dict[str, float]:
  """Return sigma_rel of the averages with a power-function profile, from `config.averages`.

  >>> power_widths({"ema": {"name": "constant", "mu": 0.9}, "ema_10": {"name": "power", "sigma_rel": 0.1}})
  {'ema_10': 0.1}
  """
  power = {name: section for name, section in averages.items() if section["name"] == "power"}
  return {name: float(section["sigma_rel"]) for name, section in power.items()}


def recorder(experiment: Experiment, workdir: epath.PathLike) -> "Hook":
  """Return the hook that stores a snapshot; every process must call it, the first one writes.

  Raises:
    UserError: There is no power-function average, two are alike, or they start afresh on the way.
  """
  config = experiment.config
  widths, every = power_widths(config.averages), config.run.snapshot_every
  with within("config"):
    if not widths:
      example = '{"ema_05": {"name": "power", "sigma_rel": 0.05}}'
      expected = f"0, or an average with a power-function profile, such as averages = {example}"
      raise UserError("run.snapshot_every", every, expected)
    if len(set(widths.values())) < len(widths):
      raise UserError("averages", widths, "power-function averages of different sigma_rel")
    if experiment.method.objective.needs.stages:
      name = config.objective.name
      expected = f"0 with {name}: its averages start afresh at each stage"
      raise UserError("run.snapshot_every", every, expected)
  run = RunFolder.at(workdir)

  def record(step: int, state: TrainState) -> None:
    trees = {name: {"net": read_average(state.opt_state, name)["net"]} for name in widths}
    wholes = {name: sharding.whole(leaf) for name, leaf in flatten(trees).items()}
    arrays = {name: np.asarray(array, np.float32, order="C") for name, array in wholes.items()}
    if jax.process_index() == 0:
      write(run.snapshot(step), step, widths, arrays)

  return record


def write(
  path: epath.PathLike, step: int, sigma_rels: Mapping[str, float], arrays: Mapping[str, np.ndarray]
) -> None:
  """Write a snapshot: all of it or nothing.

  Args:
    path: Where, as `RunFolder.snapshot` names it.
    step: After which the averages are these.
    sigma_rels: Their relative widths.
    arrays: Float32, by "AVERAGE/net/...".

  Raises:
    UserError: The place cannot be written, or the disk is full.
  """
  sha256 = _sha256(step, sigma_rels, digests.of_named(sorted(arrays.items())))
  about = {"format": FORMAT, "step": step, "sigma_rels": dict(sigma_rels), "sha256": sha256}
  save_arrays(path, arrays, {_METADATA: json.dumps(about)})


def _sha256(step: int, sigma_rels: Mapping[str, float], arrays: str) -> str:
  """Return what a file is checked with: of what it says of itself, and of its arrays by name."""
  return hashlib.sha256(json.dumps([step, list(sigma_rels.items()), arrays]).encode()).hexdigest()


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Any]:
  import safetensors

  try:
    with whole.reading(path) as local, safetensors.safe_open(local, "numpy") as file:
      yield file
  except (*DAMAGE, OSError, safetensors.SafetensorError) as error:
    raise UserError("snapshot", str(path), f"a readable file, or none ({error})") from error


def _header(path: epath.Path) -> Snapshot:
  with _opened(path) as file:
    text = (file.metadata() or {}).get(_METADATA, "{}")
  try:
    about = bounded.parse_object(text, str(path), "what a snapshot says of itself")
    number, widths = about["format"], {str(name): float(width) for name, width in about["sigma_rels"].items()}
    snapshot = Snapshot(path, about["step"], widths, about["sha256"] if number == FORMAT else None)
    posthoc.exponent(list(widths.values()))
    fits = type(number) is int and 1 <= number <= FORMAT and (number == 1 or type(snapshot.sha256) is str)
    fits = fits and type(snapshot.step) is int and snapshot.step > 0
    # Alike, or twice at a step, none could be told from the other.
    fits = fits and len(set(widths.values())) == len(widths) > 0
    fits = fits and path.name == RunFolder(path.parent).snapshot(snapshot.step).name
  except (UserError, *DAMAGE):
    fits = False
  if not fits:
    raise UserError("snapshot", str(path), f"format 1 to {FORMAT} of snapshots, which this version reads")
  return snapshot


def stored(workdir: epath.PathLike) -> list[Snapshot]:
  """Return the snapshots of a run by ascending step; only their headers are read.

  Raises:
    UserError: One is damaged, or of another format.
  """
  paths = RunFolder.at(workdir).snapshots.glob("step_*.safetensors")
  return sorted(map(_header, paths), key=lambda snapshot: snapshot.step)


def choose(workdir: epath.PathLike, step: int = -1) -> list[Snapshot]:
  """Return the snapshots of a run up to a stored step, -1 for the newest.

  Raises:
    UserError: There are none, or none at that step.
  """
  found = stored(workdir)
  if not found:
    expected = "a run with snapshots: averages of profile power, and run.snapshot_every above 0"
    raise UserError("workdir", str(workdir), expected)
  steps = [snapshot.step for snapshot in found]
  if step not in (-1, *steps):
    raise UserError("step", step, f"-1 or a stored step: {', '.join(map(str, steps))}")
  return found if step == -1 else found[: steps.index(step) + 1]


def recipe(snapshots: Sequence[Snapshot], sigma_rel: float) -> Recipe:
  """Return how the average of a width at the last snapshot's step is made of all of them (EDM2 alg. 3).

  Args:
    snapshots: At least one.
    sigma_rel: In (0, 0.289). The closer to the stored widths, and the more snapshots,
      the smaller the profile error.

  >>> here = epath.Path(".")
  >>> every_10 = [Snapshot(here, step, {"a": 0.05, "b": 0.1}) for step in range(10, 110, 10)]
  >>> made = recipe(every_10, 0.075)
  >>> made.weights.round(2)[-2:].tolist(), round(made.profile_error, 3)
  ([0.28, 0.81], 0.008)

  Raises:
    UserError: A width out of range.
  """
  times = [snapshot.step for snapshot in snapshots for _ in snapshot.sigma_rels]
  widths = [width for snapshot in snapshots for width in snapshot.sigma_rels.values()]
  last = snapshots[-1].step
  weights = posthoc.coefficients(times, widths, [last], [sigma_rel])[:, 0]
  return Recipe(last, sigma_rel, weights, posthoc.profile_error(times, widths, last, sigma_rel, weights))


def combine(snapshots: Sequence[Snapshot], weights: np.ndarray) -> list[Params]:
  """Return sums of the stored averages, float32 numpy trees {"net": ...}, added up in float64.

  Each file is read once, tensor by tensor.

  Args:
    snapshots: Of one run.
    weights: A column for each sum, a row for each average of each snapshot [S, W].

  Raises:
    UserError: A file is damaged, not what was written, or its parameters are not those of the first.
  """
  totals: list[dict[str, Any]] = [{} for _ in range(weights.shape[1])]
  rows, shapes = iter(weights), None
  for snapshot in snapshots:
    row = {average: next(rows) for average in snapshot.sigma_rels}
    with _opened(snapshot.path) as file:
      names = sorted(file.keys())
      for average in snapshot.sigma_rels:
        of_it = [name for name in names if name.startswith(f"{average}/")]
        found = {name.removeprefix(f"{average}/"): file.get_slice(name).get_shape() for name in of_it}
        shapes = found if shapes is None else shapes
        if not found or found != shapes:
          expected = f"{average} with the parameters that {snapshots[0].path} has"
          raise UserError("snapshot", str(snapshot.path), expected)
      digest = digests.of_named(_added(file, names, row, totals))
    if snapshot.sha256 not in (None, _sha256(snapshot.step, snapshot.sigma_rels, digest)):
      expected = f"what was written, whose sha256 is {snapshot.sha256[:12]}... (delete it to do without)"
      raise UserError("snapshot", str(snapshot.path), expected)
  return [unflatten({key: np.asarray(value, np.float32) for key, value in total.items()}) for total in totals]


def _added(
  file: Any, names: Sequence[str], weights: Mapping[str, np.ndarray], totals: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the tensors of a file, and add each to every sum, by the weights of its average."""
  for name in names:
    tensor = file.get_tensor(name)
    average, _, key = name.partition("/")
    value = tensor.astype(np.float64)
    for total, weight in zip(totals, weights.get(average, ()), strict=False):
      total[key] = total.get(key, 0.0) + weight * value
    yield name, tensor
