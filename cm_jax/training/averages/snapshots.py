"""Snapshots of the power-function averages: light files, from which averages of any width are made.

`workdir/snapshots/step_00001200.safetensors` holds the network of every such average after that step,
float32, under the names "AVERAGE/net/...". Files are written whole or not at all, always the same bytes for
the same averages, and read one tensor at a time.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from cm_jax.errors import UserError, within
from cm_jax.storage import bounded, whole
from cm_jax.storage.run import RunFolder
from cm_jax.storage.weights import flatten, save_arrays, unflatten
from cm_jax.training.averages import posthoc
from cm_jax.training.averages.track import read_average
from cm_jax.types import Array, Experiment, Params, TrainState

if TYPE_CHECKING:
  from cm_jax.training.loop import Hook

FORMAT = 1
_METADATA = "cm_jax"  # one key, since safetensors writes several in any order


class Snapshot(NamedTuple):
  """A stored file: its step, and the relative width of each average in it."""

  path: epath.Path
  step: int
  sigma_rels: dict[str, float]


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
    arrays = {name: _whole(leaf) for name, leaf in flatten(trees).items()}
    if jax.process_index() == 0:
      about = {"format": FORMAT, "step": step, "sigma_rels": widths}
      save_arrays(run.snapshot(step), arrays, {_METADATA: json.dumps(about)})

  return record


def _whole(leaf: Array) -> np.ndarray:
  if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf, np.float32, order="C")


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Any]:
  import safetensors

  try:
    with whole.reading(path) as local, safetensors.safe_open(local, "numpy") as file:
      yield file
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError("snapshot", str(path), f"a readable file, or none ({error})") from error


def _header(path: epath.Path) -> Snapshot:
  with _opened(path) as file:
    text = (file.metadata() or {}).get(_METADATA, "{}")
  try:
    about = bounded.parse_object(text, str(path), "what a snapshot says of itself")
    widths = {str(name): float(width) for name, width in about["sigma_rels"].items()}
    snapshot = Snapshot(path, about["step"], widths)
    fits = about["format"] == FORMAT and type(snapshot.step) is int and len(snapshot.sigma_rels) > 0
  except (UserError, AttributeError, KeyError, TypeError, ValueError):
    fits = False
  if not fits:
    raise UserError("snapshot", str(path), f"format {FORMAT} of snapshots, which this version reads")
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
    UserError: A file is damaged, or its parameters are not those of the first.
  """
  totals: list[dict[str, Any]] = [{} for _ in range(weights.shape[1])]
  rows, shapes = iter(weights), None
  for snapshot in snapshots:
    with _opened(snapshot.path) as file:
      for average in snapshot.sigma_rels:
        row, prefix = next(rows), f"{average}/"
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  # no mapping
        found = {name.removeprefix(prefix): file.get_slice(name).get_shape() for name in names}
        shapes = found if shapes is None else shapes
        if not found or found != shapes:
          expected = f"{average} with the parameters that {snapshots[0].path} has"
          raise UserError("snapshot", str(snapshot.path), expected)
        for key in found:
          value = file.get_tensor(prefix + key).astype(np.float64)
          for total, weight in zip(totals, row, strict=True):
            total[key] = total.get(key, 0.0) + weight * value
  return [unflatten({key: np.asarray(value, np.float32) for key, value in total.items()}) for total in totals]
