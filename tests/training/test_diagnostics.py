"""Diagnostics against closed forms, and as a hook: what is written, what a resume drops, the same on any
devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from cm_jax import cli
from cm_jax.assembly import build
from cm_jax.diffusion.noise import append_dims
from cm_jax.errors import UserError
from cm_jax.storage import lines as json_lines
from cm_jax.storage.run import RunFolder
from cm_jax.training import loop, sharding
from cm_jax.training.diagnostics import self_consistency
from cm_jax.training.diagnostics.hook import Diagnostics
from cm_jax.training.program import Program
from cm_jax.types import Needs, NoiseRange, Objective, ObjectiveOutput
from tests import tiny
from tests.gaussian import Gaussian
from tests.training.test_train import write_config

pytestmark = pytest.mark.slow  # every one needs a trained run

NOISE = NoiseRange()
DATA = Gaussian(mean=0.2, std=0.5)


def gaussian_points(drift, n: int = 64, shape=(8, 8, 1)):
  x_key, z_key = jax.random.split(jax.random.key(0))
  x = DATA.mean + DATA.std * jax.random.normal(x_key, (n, *shape))
  z = jax.random.normal(z_key, (n, *shape))
  return x, z, self_consistency.trajectories(x, z, self_consistency.spread_levels(n, NOISE), NOISE, drift)


def test_levels_span_the_range():
  t = np.asarray(self_consistency.spread_levels(256, NOISE))
  assert (
    2 * NOISE.sigma_min < t[0] < 2.1 * NOISE.sigma_min and 0.95 * NOISE.sigma_max < t[-1] < NOISE.sigma_max
  )
  np.testing.assert_allclose(
    np.diff(np.log(t)), np.log(NOISE.sigma_max / (2 * NOISE.sigma_min)) / 256, rtol=1e-3
  )
  r = np.asarray(self_consistency.level_below(jnp.asarray(t), NOISE))
  assert (r < t).all() and (r >= np.float32(NOISE.sigma_min)).all()


HEUN_ERROR = {"adjacent": 4e-4, "whole": 2e-2}  # relative to the data's deviation


@pytest.mark.slow
def test_teacher_trajectories_are_the_exact_ones():
  _, _, points = gaussian_points(DATA.drift)
  for name, (x_r, r) in points.later.items():
    exact = DATA.path(points.x_t, points.t, r)
    scale = append_dims(jnp.sqrt(DATA.std**2 + r**2), exact)  # the deviation of x_r
    assert (
      float(jnp.sqrt(jnp.mean(jnp.square((x_r - exact) / scale), axis=(1, 2, 3))).max()) < HEUN_ERROR[name]
    )


def test_following_is_of_second_order(x64):
  x, t, r = jnp.full((1, 1, 1, 1), 60.0), jnp.array([70.0]), jnp.array([0.01])
  off = [
    float(jnp.abs(self_consistency.follow(DATA.drift, x, t, r, n) - DATA.path(x, t, r)).item())
    for n in (64, 128, 256)
  ]
  assert 3.5 < off[0] / off[1] < 4.5 and 3.5 < off[1] / off[2] < 4.5


def test_the_exact_consistency_function_has_no_error_and_any_other_has():
  _, _, points = gaussian_points(DATA.drift)
  exact = self_consistency.errors(DATA.consistency(NOISE.sigma_min), points)
  other = Gaussian(mean=0.3, std=0.6).consistency(NOISE.sigma_min)
  for name, values in exact.items():
    assert values.shape == (64,)
    assert float(values.max()) < DATA.std * HEUN_ERROR[name]
  for name, (_, r) in points.later.items():
    on_path = DATA.path(points.x_t, points.t, r)
    difference = np.asarray(other(points.x_t, points.t) - other(on_path, r))
    expected = np.sqrt((difference**2).mean(axis=(1, 2, 3)))
    assert expected.max() > 0.01
    np.testing.assert_allclose(
      self_consistency.errors(other, points)[name], expected, atol=2 * DATA.std * HEUN_ERROR[name]
    )


@pytest.mark.slow
def test_the_monte_carlo_estimate_has_its_variance_even_at_the_exact_function():
  _, _, points = gaussian_points(None, n=256, shape=(16, 16, 1))
  values = self_consistency.errors(DATA.consistency(NOISE.sigma_min), points)
  for name, (_, r) in points.later.items():
    t, r = np.asarray(points.t), np.asarray(r)
    end = np.sqrt(DATA.std**2 + NOISE.sigma_min**2)
    slope = lambda level, end=end: end / np.sqrt(DATA.std**2 + level**2)
    expected = np.hypot((slope(t) - slope(r)) * DATA.std, t * slope(t) - r * slope(r))  # of x - m and of z
    assert expected.max() > 0.05
    np.testing.assert_allclose(values[name], expected, rtol=0.25, atol=1e-5)
    assert np.mean(values[name] / expected) == pytest.approx(1, abs=0.01)


@dataclasses.dataclass(frozen=True)
class Nearest(Objective):
  """Half the squared distance of the parameters from each image: the gradient of an example is params - x."""

  trains = "diffusion"
  needs = Needs()

  def draw(self, key, batch, step):
    return jnp.zeros(())

  def loss(self, params, context, batch, draws, step):
    per_example = 0.5 * jnp.sum(jnp.square(params["net"][None] - batch["image"]), axis=(1, 2, 3))
    return ObjectiveOutput(per_example.mean(), per_example, jnp.ones_like(per_example), {})


@dataclasses.dataclass(frozen=True)
class NormalImages:
  """Independent normal pixels."""

  mean: float
  std: float
  fingerprint = "normal"
  num_classes = 0

  def __len__(self):
    return 1000

  def __getitem__(self, index):
    image = np.random.default_rng(index).normal(self.mean, self.std, (16, 16, 1)).astype(np.float32)
    return {"image": image, "label": -1}


@pytest.mark.slow
def test_gradient_noise_is_the_closed_form(tmp_path):
  experiment = build(tiny.config(num_steps=1))
  method = dataclasses.replace(
    experiment.method,
    objective=Nearest(),
    init=lambda key: {"net": jnp.full((16, 16, 1), 0.5)},
    student=lambda params, condition=None, key=None: lambda x, sigma: x,
    preprocess=lambda batch, key: {"image": batch["image"]},
    image_shape=(16, 16, 1),
  )
  experiment = dataclasses.replace(
    experiment,
    method=method,
    source=NormalImages(mean=0.2, std=2.0),
  )
  Diagnostics(experiment, tmp_path, "digits:train")(1, Program(experiment).create())
  noise = json_lines.read(RunFolder.at(tmp_path).diagnostics)[-1]["gradient_noise"]
  assert (noise["batch_small"], noise["batch_big"]) == (16, 128)
  pixels = 16 * 16
  assert noise["trace"] == pytest.approx(pixels * 2.0**2, rel=0.12)
  # The error of |G|^2 comes from |noise of the mean|^2 (unbiased) and its product with G.
  assert noise["norm_squared"] == pytest.approx(pixels * 0.3**2, abs=3 * 2 * 0.3 * 16 * 2.0 / 128**0.5)
  assert noise["b_simple"] == pytest.approx(noise["trace"] / noise["norm_squared"])


def diagnosed(config, workdir, every: int = 2, **changes):
  experiment = dataclasses.replace(build(config), **changes)
  diagnostics = Diagnostics(experiment, workdir)
  loop.train(experiment, workdir, [(every, diagnostics)], progress=False)
  return diagnostics, json_lines.read(RunFolder.at(workdir).diagnostics)


def without_clock(lines):
  return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
  """A CT run with diagnostics, never interrupted, and its folder."""
  workdir = tmp_path_factory.mktemp("whole")
  return *diagnosed(tiny.config(tiny.CT, num_steps=5), workdir), workdir


def test_a_run_leaves_lines_and_a_picture(whole_run):
  _, lines, workdir = whole_run
  assert [line["step"] for line in lines] == [2, 4, 5]
  for line in lines:
    assert line["source"] == "digits:test" and line["images"] == 128
    assert set(line["self_consistency_monte_carlo"]) == {"params", "ema"}
    for points in line["self_consistency_monte_carlo"].values():
      assert set(points) == {"adjacent", "whole"}
      for bins in points.values():
        assert next(iter(bins)) == "sigma_0-0.03" and list(bins)[-1] == "sigma_10-inf" and len(bins) == 7
        assert all(value > 0 for value in bins.values())
    assert line["gradient_noise"]["trace"] > 0
    assert (line["nonfinite_total"], line["nonfinite_in_a_row"]) == (0, 0)
  first, last = (line["self_consistency_monte_carlo"] for line in (lines[0], lines[-1]))
  assert first["params"] != last["params"] and first["params"] != first["ema"]
  assert RunFolder.at(workdir).self_consistency.read_bytes().startswith(b"\x89PNG")


def test_nothing_compiles_twice(whole_run):
  diagnostics, _, _ = whole_run
  for function in (
    diagnostics._ready,
    diagnostics._errors,
    diagnostics._add_gradient,
    diagnostics._squared_norm,
    diagnostics._zeros,
  ):
    assert function._cache_size() == 1


@pytest.mark.slow
def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path, whole_run):
  diagnosed(tiny.config(tiny.CT, num_steps=3), tmp_path, every=1)
  json_lines.append(RunFolder.at(tmp_path).diagnostics, [{"step": 4, "from": "a run that was cut off"}])
  json_lines.append(RunFolder.at(tmp_path).diagnostics, [{"step": 5, "from": "a run that was cut off"}])
  _, lines = diagnosed(tiny.config(tiny.CT, num_steps=5), tmp_path, every=5)
  assert [line["step"] for line in lines] == [1, 2, 3, 5]
  whole = {line["step"]: line for line in without_clock(whole_run[1])}
  assert without_clock(lines)[1] == whole[2] and without_clock(lines)[3] == whole[5]


def test_a_new_run_in_a_folder_without_checkpoints_starts_afresh(tmp_path):
  json_lines.append(RunFolder.at(tmp_path).diagnostics, [{"step": 1, "from": "a run that was cut off"}])
  _, lines = diagnosed(tiny.config(tiny.CT, num_steps=2, checkpoint_every=2), tmp_path)
  assert [line["step"] for line in lines] == [2]


def test_the_train_command_diagnoses_where_the_config_says_so(tmp_path, monkeypatch):
  # leave the tests' own
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
  config = write_config(tmp_path / "config.py", num_steps=2, diagnose_every=1)
  assert cli.run(["train", config, "--noprogress", f"--workdir={tmp_path / 'run'}"]) == 0
  assert [line["step"] for line in json_lines.read(RunFolder.at(tmp_path / "run").diagnostics)] == [1, 2]


@pytest.mark.slow
def test_one_and_eight_devices_measure_alike(tmp_path):
  experiment = build(tiny.config(tiny.CT))
  records = []
  for count in (1, 8):
    mesh = jax.make_mesh(
      (count, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:count]
    )
    on_mesh = dataclasses.replace(experiment, mesh=mesh)
    Diagnostics(on_mesh, tmp_path / str(count))(1, Program(on_mesh).create())
    records.append(without_clock(json_lines.read(RunFolder.at(tmp_path / str(count)).diagnostics))[0])
  one, eight = (jax.tree.leaves(record) for record in records)
  assert jax.tree.structure(records[0]) == jax.tree.structure(records[1])
  for a, b in zip(one, eight, strict=True):
    assert a == b if isinstance(a, str) else a == pytest.approx(b, rel=1e-3)


@pytest.mark.slow
def test_a_distilled_student_is_measured_on_its_teachers_trajectories(tmp_path):
  loop.train(build(tiny.config(num_steps=2, checkpoint_every=2)), tmp_path / "teacher", progress=False)
  config = tiny.config(tiny.CD, num_steps=1)
  config.teacher.path = str(tmp_path / "teacher")
  _, lines = diagnosed(config, tmp_path / "student")
  assert set(lines[0]["self_consistency_teacher"]) == {"params", "ema"}
  assert "self_consistency_monte_carlo" not in lines[0]


def test_skipped_steps_are_counted(tmp_path):
  experiment = build(tiny.config(tiny.CT))
  state = Program(experiment).create()
  counts = {"total_notfinite": jnp.asarray(7), "notfinite_count": jnp.asarray(2)}
  Diagnostics(experiment, tmp_path)(1, state.replace(opt_state=optax.tree.set(state.opt_state, **counts)))
  line = json_lines.read(RunFolder.at(tmp_path).diagnostics)[0]
  assert (line["nonfinite_total"], line["nonfinite_in_a_row"]) == (7, 2)


def test_a_diverged_model_is_recorded_as_null(tmp_path):
  experiment = build(tiny.config(tiny.CT))
  state = Program(experiment).create()
  Diagnostics(experiment, tmp_path)(
    1, state.replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
  )
  line = json.loads(RunFolder.at(tmp_path).diagnostics.read_text())
  assert set(line["self_consistency_monte_carlo"]["params"]["whole"].values()) == {None}
  assert line["gradient_noise"]["trace"] is None


def test_held_out_images_of_another_shape_are_refused(tmp_path):
  experiment = build(tiny.config(tiny.CT))
  experiment = dataclasses.replace(
    experiment, method=dataclasses.replace(experiment.method, image_shape=(16, 16, 1))
  )
  with pytest.raises(UserError, match="held-out images"):
    Diagnostics(experiment, tmp_path)
