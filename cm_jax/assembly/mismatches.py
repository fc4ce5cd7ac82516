"""What a run is made of and does not go together, although every part is right by itself.

Nothing would fail: weights would be another network's function, a teacher would not say what it is asked.
`config.run.on_mismatch` says whether that is an error, or only told.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from cm_jax.assembly.complete import DERIVED, complete
from cm_jax.assembly.components import component_name
from cm_jax.config import plain_json
from cm_jax.diffusion.precond import anchored
from cm_jax.errors import UserError
from cm_jax.models import Method, Model
from cm_jax.networks import NETWORKS
from cm_jax.types import NoiseRange, Precond

# Of config.network: no matter to one that teaches or is started from, and what such a one has.
TRAINING_ONLY = {
  "dropout": 0.0,
  "dropres": 0,
  "label_dropout": 0.0,
  "remat": False,
  "remat_policy": "blocks",
  "kernels": "auto",
}
# What a network may have that another's weights lack: it starts without effect; and in what it computes.
MAY_DIFFER = (*TRAINING_ONLY, *DERIVED, "name", "dtype", "second_time", "guidance_embedding")
ROUNDING = 0.01  # of the ends of a noise range, which files round
GO_ON = "config.run.on_mismatch = allow goes on"


def mismatches(
  config: ml_collections.ConfigDict, method: Method, teacher: Model | None, start: Model | None
) -> list[UserError]:
  """Return what does not go together, the worst first.

  Args:
    config: Complete.
    method: Of it.
    teacher: What is distilled, if something is.
    start: The model whose weights the student starts with, if with one's.
  """
  found = list(_of_start(config, method, start)) if start is not None else []
  distilled = teacher if method.objective.needs.teacher else None
  return [*found, *_of_teacher(config, method, distilled, start)]


def _of_start(config: ml_collections.ConfigDict, method: Method, start: Model) -> Iterator[UserError]:
  """Weights fit by their shapes. What has no shape must be the same, or they are another function.

  That is all of the network but `MAY_DIFFER`, sigma_data, time_scale, and how the preconditioning feeds the
  network and takes its output. Not compared, since the function that training starts from is the same:
  c_skip and c_out near sigma_min, which are what makes a consistency model of a diffusion model; its noise
  range, beyond which the student has yet to learn; dropout and precision, the run's own. Its kind is free:
  a consistency model may be trained on. Images, classes and their names: `check_same_images`.
  """
  whose = f"as of the model whose weights it starts with, {_place(start)}"
  for field, ours, theirs in network_settings(config.network, start.network):
    takes = 'config.network = {"name": "teacher"} or "init" takes theirs'
    yield UserError(f"config.network.{field}", ours, f"{theirs!r}, {whose} ({takes}; {GO_ON})")
  sigma_data = method.noise.sigma_data, start.noise.sigma_data
  if sigma_data[0] != sigma_data[1]:
    yield UserError("config.noise.sigma_data", sigma_data[0], f"{sigma_data[1]}, {whose} ({GO_ON})")
    return
  theirs = complete({"precond": plain_json(start.precond)}).precond
  scale = theirs.get("time_scale"), config.precond.get("time_scale")
  if None not in scale and scale[0] != scale[1]:
    yield UserError("config.precond.time_scale", scale[1], f"{scale[0]}, {whose} ({GO_ON})")
  elif not _same_use(method.student.precond, start.preconditioned.precond):
    name = component_name(theirs)
    expected = f"one that feeds the network as {name} does and takes its output alike, {whose} ({GO_ON})"
    yield UserError("config.precond.name", component_name(config.precond), expected)


def network_settings(ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
  """Yield (field, ours, theirs) of the settings of two network sections that no parameter's shape shows and
  that differ: filters, heads, balances, embeddings."""
  ours, theirs = (complete({"network": plain_json(side)}).network.to_dict() for side in (ours, theirs))
  if ours["name"] != theirs["name"]:
    yield "name", ours["name"], theirs["name"]
    return
  shown = (*MAY_DIFFER, *NETWORKS[ours["name"]].shown_by_shapes)
  for field in sorted(ours.keys() | theirs.keys()):
    if field not in shown and ours.get(field) != theirs.get(field):
      yield field, ours.get(field), theirs.get(field)


def _of_teacher(
  config: ml_collections.ConfigDict, method: Method, teacher: Model | None, start: Model | None
) -> Iterator[UserError]:
  """A teacher is asked for its drift, which has to be that of the student's images at the student's levels.

  So its kind, sigma_data (the images' own) and noise range count, and whether it knows images without a
  label where that is asked for. Not compared: filters, heads, balances, embedding, time_scale and
  preconditioning, since it computes with its own, and the student may be another network; dropout, which it
  is called without; precision, which is the run's for both; how its images were cropped, since the same may
  come cropped already. Images, classes and their names: `check_same_images`; its augmentation label:
  `check_teachers_augment`; a teacher that the student replaces: `check_stages`.
  """
  if teacher is None:
    return
  needs, path = method.objective.needs, config.teacher.path
  bounded = anchored(teacher.preconditioned.precond, train=False)
  if teacher.kind not in ("diffusion", None) or (teacher.kind is None and bounded):
    what = teacher.kind or "consistency"
    expected = f"a diffusion model, not one of kind {what}: its drift is not that of the data"
    yield UserError("config.teacher.path", path, f"{expected} ({GO_ON})")
  if teacher is not start and teacher.noise.sigma_data != method.noise.sigma_data:
    expected = f"{teacher.noise.sigma_data}, as of the teacher {path}, of the same images ({GO_ON})"
    yield UserError("config.noise.sigma_data", method.noise.sigma_data, expected)
  yield from _of_range(method.noise, teacher.noise, path)
  if needs.guidance and teacher.guidable is False:
    expected = (
      f"a teacher trained with label_dropout above 0: guidance asks it for images of no label ({GO_ON})"
    )
    yield UserError("config.teacher.path", path, expected)
  dropped = config.network.get("label_dropout", 0.0)
  if dropped and method.num_classes:
    expected = f"0 with a teacher, which keeps the label that the student would lose ({GO_ON})"
    yield UserError("config.network.label_dropout", dropped, expected)


def _of_range(ours: NoiseRange, theirs: NoiseRange, path: str) -> Iterator[UserError]:
  """Where a student goes and its teacher never was, the drift is whatever the network happens to say."""
  whose = f"where the noise range of the teacher {path} ends ({GO_ON})"
  if ours.sigma_max > theirs.sigma_max * (1 + ROUNDING):
    yield UserError("config.noise.sigma_max", ours.sigma_max, f"at most {theirs.sigma_max:g}, {whose}")
  if ours.sigma_min < theirs.sigma_min * (1 - ROUNDING):
    yield UserError("config.noise.sigma_min", ours.sigma_min, f"at least {theirs.sigma_min:g}, {whose}")


def _same_use(ours: Precond, theirs: Precond) -> bool:
  """Say whether a network is fed alike and says the same: c_in and c_noise are the same functions of sigma,
  and c_out has its sign and size far from where a boundary changes it."""
  low = max(ours.noise.sigma_min, theirs.noise.sigma_min)
  high = max(low, min(ours.noise.sigma_max, theirs.noise.sigma_max))
  sigma = jnp.asarray(np.geomspace(low, high, 7), jnp.float32)
  one, two = ours(sigma, train=False), theirs(sigma, train=False)
  fed = all(
    np.allclose(getattr(one, field), getattr(two, field), rtol=1e-3, atol=1e-4)
    for field in ("c_in", "c_noise")
  )
  return fed and np.allclose(one.c_out[-1], two.c_out[-1], rtol=0.5)


def _place(model: Model) -> str:
  return str(model.provenance.get("path"))
