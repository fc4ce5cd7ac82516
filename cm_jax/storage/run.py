"""The run folder, the product's central object: the names of all in it, its config, its tuned levels."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from cm_jax import config as config_lib
from cm_jax.errors import UserError
from cm_jax.storage import bounded, bucket, weights, whole
from cm_jax.storage.model_json import levels_by_nfe

FORMAT = 2  # of config.json; 1 had no format, no num_images and not every default


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Where things lie in a run; nothing is made or read here.

  Attributes:
    path: The folder, `--workdir`.
    config: The complete config the run began with, its format and `config_sha256`, the kind of its model.
    checkpoints: A folder a step, by Orbax.
    saved: The step of the newest checkpoint that was ever written: whether checkpoints are gone.
    metrics: JSON lines of training: step, seconds, loss, loss by noise level, ...
    tensorboard: The same for TensorBoard.
    samples: Grids drawn while training and by `evaluate`.
    evaluations: JSON lines, a record a measurement.
    sigmas: The noise levels that search-steps found, by number of network evaluations.
    snapshots: Averages of power profile, for `cm_jax ema`.
    diagnostics: JSON lines of self-consistency and gradient noise.
    self_consistency: Their picture.
    lock: Who trains here just now.
  """

  path: epath.Path

  @classmethod
  def at(cls, workdir: epath.PathLike) -> "RunFolder":
    """Return the run folder at a path."""
    return cls(whole.absolute(workdir))

  config = property(lambda self: self.path / "config.json")
  checkpoints = property(lambda self: self.path / "checkpoints")
  saved = property(lambda self: self.path / "saved.json")
  metrics = property(lambda self: self.path / "metrics.jsonl")
  tensorboard = property(lambda self: self.path / "tensorboard")
  samples = property(lambda self: self.path / "samples")
  evaluations = property(lambda self: self.path / "evaluations.jsonl")
  sigmas = property(lambda self: self.path / "sigmas.json")
  snapshots = property(lambda self: self.path / "snapshots")
  diagnostics = property(lambda self: self.path / "diagnostics.jsonl")
  self_consistency = property(lambda self: self.path / "self_consistency.png")
  lock = property(lambda self: self.path / ".lock")

  def grid_of_step(self, step: int) -> epath.Path:
    """Return where the samples drawn after a training step are."""
    return self.samples / f"step_{step:08d}.png"

  def grid_of_nfe(self, nfe: int) -> epath.Path:
    """Return where the samples measured at a number of network evaluations are."""
    return self.samples / f"nfe_{nfe:03d}.png"

  def nearest(self, nfe: int | None, by: str) -> epath.Path:
    """Return where samples are beside the training images nearest to them, "pixels" or "features"."""
    return self.samples / f"nearest_{by}_{'given' if nfe is None else f'nfe_{nfe:03d}'}.png"

  def search(self, nfe: int) -> epath.Path:
    """Return the picture of what search-steps saw."""
    return self.path / f"search_nfe_{nfe:03d}.png"

  def snapshot(self, step: int) -> epath.Path:
    """Return the snapshot of a step."""
    return self.snapshots / f"step_{step:08d}.safetensors"


def check_entries(workdir: epath.PathLike) -> None:
  """Check that what is in a run folder already can be written: files where files go, folders where folders.

  Raises:
    UserError: Names the first entry that is something else.
  """
  run = RunFolder.at(workdir)
  if bucket.is_bucket(run.path):  # which holds objects of any name, no pipes, no links
    bucket.check_writable("workdir", run.config)
    return
  if run.path.exists() and not run.path.is_dir():
    raise UserError("workdir", str(workdir), "a folder, or a path that does not exist yet")
  folders = (run.checkpoints, run.tensorboard, run.samples, run.snapshots)
  files = (run.config, run.metrics, run.evaluations, run.sigmas, run.diagnostics, run.self_consistency)
  # What a kill could leave of versions that wrote format 1.
  temporary = [path.with_suffix(".tmp") for path in (run.config, run.metrics)]
  for path in (*folders, *files, *temporary):
    if path.exists() and path.is_dir() != (path in folders):
      given, expected = ("a file", "a folder") if path in folders else ("a folder", "a file")
      raise UserError(str(path), given, f"{expected}, or nothing, of a run folder")
    if path.exists() and path in files:
      try:
        whole.check_regular(path)
      except OSError as error:
        raise UserError(str(path), str(error), "a file, or nothing, of a run folder") from error


def read_config(workdir: epath.PathLike) -> dict[str, Any] | None:
  """Return the stored config as plain JSON types, or None if the folder has none.

  Raises:
    UserError: The file is not a JSON object, or of a newer format.
  """
  path = RunFolder.at(workdir).config
  if not path.exists():
    return None
  stored = bounded.read_object(path, "the JSON config that training wrote, an object")
  number = stored.get("format", 1)
  if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= FORMAT:
    expected = f"1 to {FORMAT}, which this version of cm_jax reads (a newer one wrote this run?)"
    raise UserError(f"{path}: format", number, expected)
  for key, default in config_lib.default().items():
    if isinstance(default, ml_collections.ConfigDict) and key in stored:
      fits = isinstance(stored[key], dict) or ("name" in default and isinstance(stored[key], str))
      if not fits:
        raise UserError(f"{path}: {key}", stored[key], "a section, as training wrote it")
  return stored


def write_config(
  workdir: epath.PathLike, config: Mapping[str, Any], begins: bool = False, kind: str | None = None
) -> None:
  """Write a run's config, or of one that is there what may change: what identifies a run is written once.

  `run`, `mesh`, where its data and teacher lie, and `num_images`, which may grow where nothing ends with it,
  are written anew; `config_sha256` stays that of the first writing.

  Args:
    workdir: The run.
    config: Complete.
    begins: There is nothing yet that was made with the config that may be there.
    kind: What is trained, one of `KINDS`: known without the objective, which may be the user's own code.
  """
  ours = config_lib.plain_json(config)
  stored = None if begins else read_config(workdir)
  if stored is None:
    stored = {**ours, "format": FORMAT, "config_sha256": config_lib.sha256(ours)}
    stored |= {} if kind is None else {"kind": kind}
  else:
    changed = {key: ours[key] for key in config_lib.MAY_DIFFER}
    stored = {**stored, "config_sha256": identity(stored), **changed}
    if "num_images" in stored:
      stored["num_images"] = ours["num_images"]
    stored["data"] = {**stored["data"], "source": ours["data"]["source"]}
    stored["teacher"] = ours["teacher"]
  whole.write(RunFolder.at(workdir).config, json.dumps(stored, indent=2, sort_keys=True) + "\n")


def identity(stored: Mapping[str, Any]) -> str:
  """Return the `config_sha256` of a stored config: that of its content as it was first written."""
  return stored.get("config_sha256") or config_lib.sha256(stored)


def note_saved(workdir: epath.PathLike, step: int) -> None:
  """Write down that a checkpoint is complete but for its name."""
  whole.write(RunFolder.at(workdir).saved, json.dumps({"step": step}) + "\n")


def last_saved(workdir: epath.PathLike) -> int | None:
  """Return the step of the newest checkpoint that was ever written; None if there was none that is known.

  Raises:
    UserError: The file is not what training wrote.
  """
  file = RunFolder.at(workdir).saved
  if not file.exists():
    return None
  expected = 'what training wrote, such as {"step": 5000}'
  step = bounded.read_object(file, expected).get("step")
  if type(step) is not int:
    raise UserError(f"{file}: step", step, expected)
  return step


def read_sigmas(workdir: epath.PathLike) -> dict[int, tuple[float, ...]]:
  """Return the noise levels that search-steps stored in a run, by number of network evaluations.

  Raises:
    UserError: The file is not what search-steps wrote.
  """
  file = RunFolder.at(workdir).sigmas
  if not file.exists():
    return {}
  expected = "what search-steps wrote (delete the file to do without)"
  stored = bounded.read_object(file, expected)
  try:
    return levels_by_nfe({nfe: found["sigmas"] for nfe, found in stored.items()})
  except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
    raise UserError(str(file), f"{type(error).__name__}: {error}", expected) from None


def store_sigmas(path: epath.PathLike, nfe: int, sigmas: Sequence[float], about: Mapping[str, Any]) -> None:
  """Store the noise levels found for a number of network evaluations: in a run, or in a model.json."""
  if weights.is_weights_folder(path):
    tuned = lambda info: {**info["sigmas_by_nfe"], str(nfe): list(sigmas)}
    weights.update_info(path, lambda info: {**info, "sigmas_by_nfe": tuned(info)})
    return
  file = RunFolder.at(path).sigmas
  content = bounded.read_object(file, "what search-steps wrote") if file.exists() else {}
  content[str(nfe)] = {"sigmas": list(sigmas), **about}
  whole.write(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
