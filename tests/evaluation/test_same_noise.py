"""The same noise through a teacher and its students, where both are known in closed form."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cm_jax.errors import UserError
from cm_jax.evaluation.same_noise import correlation, same_noise, save
from cm_jax.types import NoiseRange
from tests.gaussian import Gaussian, GaussianPreconditioned
from tests.sampling.models import model_of

SHAPE, MIN = (6, 5, 3), NoiseRange().sigma_min
PARAMS = {"net": {"mean": jnp.float32(-0.1), "std": jnp.float32(0.3)}}
TEACHER = model_of(GaussianPreconditioned(), SHAPE, params=PARAMS, kind="diffusion", num_classes=3)
LEVELS = {2: (80.0, 0.7)}


@dataclasses.dataclass(frozen=True)
class Mirrored(GaussianPreconditioned):
  """The consistency function with its trajectories' ends on the other side of the mean."""

  def _data(self, params):
    data = super()._data(params)
    return _Mirror(data.mean, data.std)


class _Mirror(Gaussian):
  def consistency(self, sigma_min):
    f = super().consistency(sigma_min)
    return lambda x, sigma: 2 * self.mean - f(x, sigma)


def student(of=GaussianPreconditioned, **fields):
  fields = {"params": PARAMS, "num_classes": 3, "sigmas_by_nfe": LEVELS, **fields}
  return dataclasses.replace(model_of(of(sigma_min=MIN), SHAPE), **fields)


@pytest.fixture(scope="module")
def rows():
  models = {"exact": student(), "mirrored": student(Mirrored)}
  return same_noise(("truth", TEACHER), models, (1, 2), num=14, shown=5, num_steps=40, seed=7, batch_size=7)


def test_the_exact_student_makes_its_teachers_images_and_a_mirrored_one_their_negatives(rows):
  assert [(row.name, row.sampler.nfe) for row in rows] == [
    ("truth", 79), ("exact", 1), ("exact", 2), ("mirrored", 1), ("mirrored", 2)
  ]  # fmt: skip
  teacher, one, two, mirrored, _ = rows
  assert teacher.correlations is None and [len(row.images) for row in rows] == [5] * 5
  assert one.correlations.shape == (14,) and one.correlations.min() > 0.999
  assert np.abs(one.images.astype(int) - teacher.images).max() <= 3  # 40 steps of Heun, on 255 levels
  assert mirrored.correlations.max() < -0.99  # what leaves the grey levels is cut
  # the second step adds new noise of 0.7 to data of 0.3: rho = s / sqrt(s^2 + 0.7^2) of the first's image
  assert two.correlations.mean() == pytest.approx(0.3 / np.hypot(0.3, 0.7), abs=4 / np.sqrt(14 * 90))
  # 11 pairs of independent images of 90 numbers
  assert all(abs(row.of_others) < 4 / np.sqrt(11 * 90) for row in rows)


def test_correlation_is_pearsons():
  rng = np.random.default_rng(3)
  a, b = rng.integers(0, 256, (2, 4, 3, 2, 3), dtype=np.uint8)
  a[3] = 9  # of one colour
  expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a[:3], b[:3], strict=True)]
  np.testing.assert_allclose(correlation(a, b), [*expected, 0.0], atol=1e-12)


@pytest.mark.slow
def test_the_picture_and_the_numbers(rows, tmp_path):
  table = save(rows, tmp_path / "deep" / "x.png", seed=7)
  assert [line[:24] for line in table.splitlines()[2:5]] == [
    "| truth    |  79 | -    ", "| exact    |   1 | 80   ", "| exact    |   2 | 80,0."
  ]  # fmt: skip
  stored = json.loads((tmp_path / "deep" / "x.json").read_text())
  assert (stored["seed"], stored["num"]) == (7, 14)
  assert [entry["sigmas"] for entry in stored["rows"][1:3]] == [[80.0], [80.0, 0.7]]
  assert stored["rows"][0]["correlation"] is None
  assert stored["rows"][1]["correlation"] == pytest.approx(rows[1].correlations.mean())
  assert stored["rows"][1]["least"] == rows[1].correlations.min()
  sheet = np.asarray(Image.open(tmp_path / "deep" / "x.png"))
  scale = 16  # 96 pixels for the longer side of 6
  tile = rows[3].images[4].repeat(scale, 0).repeat(scale, 1)
  high, wide = 6 * scale + 6, 5 * scale + 6
  left = sheet.shape[1] - 5 * wide + 6
  np.testing.assert_array_equal(sheet[3 * high :, left + 4 * wide :][: high - 6, : wide - 6], tile)
  assert len(np.unique(sheet[:high, :left])) > 2  # a title


def test_classes_stand_over_their_columns(rows, tmp_path):
  names = ("cat", "dog", "a very long name of a class")
  named = dataclasses.replace(TEACHER, class_names=names)
  save([rows[0]._replace(model=named), rows[1]], tmp_path / "x.png", 0)
  sheet = np.asarray(Image.open(tmp_path / "x.png"))
  top, left = sheet.shape[0] - 2 * 102 + 6, sheet.shape[1] - 5 * 86 + 6
  assert top > 14
  titles = [sheet[:top, left + i * 86 : left + i * 86 + 80] for i in range(5)]
  assert all(title.min() < 100 for title in titles)
  np.testing.assert_array_equal(titles[0], titles[3])  # classes take turns
  assert (titles[0] != titles[1]).any()


BAD = {
  "no student": ({"students": {}}, "^model = : expected at least one student"),
  "teacher": ({"teacher": ("t", student())}, "^teacher = t, a consistency model: expected a diffusion model"),
  "student": ({"students": {"s": TEACHER}}, "^model = s, a diffusion model: expected a consistency model"),
  "name": ({"students": {"t": student()}}, "^model = t: expected a student with another name"),
  "shape": ({"students": {"s": student(image_shape=(6, 6, 3))}}, r"^model = s: image_shape \(6, 6, 3\)"),
  "classes": ({"students": {"s": student(num_classes=0)}}, "^model = s: num_classes 0: expected 3"),
  "nfe": ({"nfe": (1, 3)}, "^nfe = 3: expected one of 1, 2"),
  "shown": ({"shown": 9}, "^shown = 9: expected 1 to the 8 images"),
  "num": ({"num": 3, "shown": 2}, "^num = 3: expected more than 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_one_line_before_any_work(case):
  given = {"teacher": ("t", TEACHER), "students": {"s": student()}, "num": 8, "shown": 4, **BAD[case][0]}
  with pytest.raises(UserError, match=BAD[case][1]):
    same_noise(**given)
