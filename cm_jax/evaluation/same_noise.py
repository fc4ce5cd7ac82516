"""A teacher and its students from the same noise: whether a student's image is where its teacher's ODE ends.

Distillation learns the teacher's map from noise to images (CM section 3); a model that is trained in
isolation learns one of its own, if from a start that the teacher gives it. A Frechet distance shows neither.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cm_jax.diffusion.pixels import is_latent
from cm_jax.errors import UserError
from cm_jax.evaluation.records import computed_in, origin, provenance
from cm_jax.models import Model
from cm_jax.sampling.choose import choose_samplers, known_kind, listed, sampler_name
from cm_jax.sampling.generate import generate_all, make_generator
from cm_jax.storage import whole
from cm_jax.storage.sheets import save_sheet
from cm_jax.storage.tables import markdown_table
from cm_jax.types import Sampler


class Row(NamedTuple):
  """What one model makes of the noise in one way.

  Attributes:
    name: Of the model.
    sampler: How it was sampled.
    images: uint8 [shown, H, W, C], the first of its images.
    model: Which it is.
    correlations: [num] with the teacher's images from the same noise; None of the teacher's own.
    of_others: Mean correlation with the teacher's images of the same class from other noise.
  """

  name: str
  sampler: Sampler
  images: np.ndarray
  model: Model
  correlations: np.ndarray | None
  of_others: float


def same_noise(
  teacher: tuple[str, Model],
  students: Mapping[str, Model],
  nfe: Sequence[int] = (1, 2),
  num: int = 256,
  shown: int = 10,
  num_steps: int = 18,
  seed: int = 0,
  batch_size: int = 64,
  progress: Callable[[int], object] = lambda count: None,
) -> list[Row]:
  """Draw the same noise, with the same classes, through a teacher and its students.

  Args:
    teacher: What to call the diffusion model, and the model: sampled by Heun's method.
    students: The consistency models or flow maps, by what to call them.
    nfe: Numbers of network evaluations of each student: 1, or those it has tuned noise levels for.
    num: How many images the correlations are means over; more than there are classes.
    shown: How many of them to keep.
    num_steps: Of the teacher: 2 num_steps - 1 network evaluations.
    seed: Of the noise: image i depends on (seed, i) only.
    batch_size: Images at a time.
    progress: Called with the number of images of each batch.

  Returns:
    The teacher's row, and one for each student and number of evaluations.

  Raises:
    UserError: A student without tuned levels for a number of evaluations, of other images or classes than the
      teacher's, or that is a diffusion model; a teacher that is none; latents; too few images.
  """
  name, model = teacher
  _check(teacher, students)
  if not 1 <= shown <= num:
    raise UserError("shown", shown, f"1 to the {num} images that are drawn")
  classes = max(model.num_classes, 1)
  if num <= classes:
    raise UserError("num", num, f"more than {classes}, so that a class has images of two noises")
  heun = choose_samplers(model, num_steps=(num_steps,))[0]
  ways = [
    (called, student, choose_samplers(student, nfe=count)[0])
    for called, student in students.items()
    for count in nfe
  ]
  draw = lambda model, sampler: generate_all(
    make_generator(model, sampler), model, num, batch_size, seed=seed, progress=progress
  )
  truth = draw(model, heun)
  others = float(correlation(truth[:-classes], truth[classes:]).mean())
  rows = [Row(name, heun, truth[:shown], model, None, others)]
  for called, student, sampler in ways:
    images = draw(student, sampler)
    others = float(correlation(images[:-classes], truth[classes:]).mean())
    rows.append(Row(called, sampler, images[:shown], student, correlation(images, truth), others))
  return rows


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Return Pearson's correlation [N] of each pair of images over all pixels and channels.

  rho_i = <a_i - mean a_i, b_i - mean b_i> / (|a_i - mean a_i| |b_i - mean b_i|); 0 where one of the two is of
  one colour.

  Args:
    a, b: [N, H, W, C].

  >>> a = np.array([0, 50, 100, 250], np.uint8).reshape(1, 2, 2, 1)
  >>> correlation(a, 10 + a // 2).tolist(), correlation(a, 255 - a).round(9).tolist()
  ([1.0], [-1.0])
  """
  flat = lambda images: np.asarray(images, np.float64).reshape(len(images), -1)
  centred = [side - side.mean(1, keepdims=True) for side in map(flat, (a, b))]
  norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
  return np.where(norms > 0, (centred[0] * centred[1]).sum(1) / np.where(norms > 0, norms, 1), 0.0)


def _check(teacher: tuple[str, Model], students: Mapping[str, Model]) -> None:
  name, model = teacher
  if not students:
    raise UserError("model", "", "at least one student")
  if known_kind(model) != "diffusion":
    raise UserError("teacher", f"{name}, a {model.kind} model", "a diffusion model, whose ODE is followed")
  if is_latent(model.image_shape):
    raise UserError("teacher", f"latents {list(model.image_shape)}", "a model of images")
  for called, student in students.items():
    if called == name:
      raise UserError("model", called, "a student with another name than the teacher's")
    if known_kind(student) == "diffusion":
      raise UserError("model", f"{called}, a diffusion model", "a consistency model or a flow map")
    for what in ("image_shape", "num_classes"):
      given, expected = getattr(student, what), getattr(model, what)
      if given != expected:
        raise UserError("model", f"{called}: {what} {given}", f"{expected}, as the teacher's")


def save(rows: Sequence[Row], path: epath.PathLike, seed: int) -> str:
  """Write the images side by side, FILE.png, and the numbers, FILE.json; return these as a table.

  Args:
    rows: From `same_noise`.
    path: FILE.png.
    seed: Of the noise.

  Raises:
    UserError: The place cannot be written.
  """
  place, model = whole.place(path), rows[0].model
  shown = range(len(rows[0].images))
  names = [model.class_names[i % model.num_classes] for i in shown] if model.class_names else []
  whole.write(place.with_suffix(".json"), json.dumps(content(rows, seed), indent=2, allow_nan=False) + "\n")
  save_sheet(np.stack([row.images for row in rows]), place, [_title(row) for row in rows], names)
  table = [["model", "NFE", "sigmas", "correlation", "deviation", "least", "with other noise"]]
  for entry in content(rows, seed)["rows"]:
    values = [entry[key] for key in ("correlation", "deviation", "least", "of_others")]
    sigmas = "-" if entry["correlation"] is None else listed(entry["sigmas"])
    cells = ["-" if value is None else f"{value:.3f}" for value in values]
    table.append([entry["name"], str(entry["nfe"]), sigmas, *cells])
  return markdown_table(table, right=(1, *range(3, 7)))


def content(rows: Sequence[Row], seed: int) -> dict[str, Any]:
  """Return the numbers of rows, and what they are of, as plain JSON types."""
  count = next((len(row.correlations) for row in rows if row.correlations is not None), None)
  return {"seed": seed, "num": count, **provenance(), "rows": [_entry(row) for row in rows]}


def _entry(row: Row) -> dict[str, Any]:
  found = row.correlations
  measured = {"correlation": None, "deviation": None, "least": None}
  if found is not None:
    measured = {"correlation": found.mean(), "deviation": found.std(ddof=1), "least": found.min()}
  return {
    "name": row.name,
    "sampler": sampler_name(row.sampler),
    "nfe": row.sampler.nfe,
    "sigmas": [float(sigma) for sigma in row.sampler.sigmas],
    **{key: None if value is None else float(value) for key, value in measured.items()},
    "of_others": row.of_others,
    **origin(row.model),
    **computed_in(row.model),
  }


def _title(row: Row) -> str:
  """Return what stands before a row: name and network evaluations, below it the mean correlation."""
  below = [] if row.correlations is None else [f"correlation {row.correlations.mean():.3f}"]
  return "\n".join([f"{row.name}, {row.sampler.nfe} NFE", *below])
