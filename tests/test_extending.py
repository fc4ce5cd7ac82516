"""Adding one thing is one file, one line of a dict and one entry of tests/examples.py: a toy of each kind,
and nothing else touched.

Each toy is registered, chosen by a config, built, trained a step or sampled, and driven through the command
line.
"""

import dataclasses
import json
import sys
import types
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm_jax import cli
from cm_jax.assembly import build
from cm_jax.data.sources import SOURCES
from cm_jax.diffusion.curriculum import CURRICULA, Curriculum
from cm_jax.diffusion.distances import DISTANCES
from cm_jax.diffusion.drifts import DRIFTS, monte_carlo_drift
from cm_jax.diffusion.levels import LEVELS
from cm_jax.diffusion.pairs import PAIRS
from cm_jax.diffusion.precond import EDM, PRECONDS
from cm_jax.diffusion.solvers import SOLVERS, Euler
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.evaluation.features import FEATURES, Extracted
from cm_jax.evaluation.metrics import METRICS
from cm_jax.networks import NETWORKS
from cm_jax.networks.base import Network
from cm_jax.objectives import OBJECTIVES, TARGETS
from cm_jax.objectives.targets import Ema
from cm_jax.sampling import SAMPLERS
from cm_jax.sampling.grids import GRIDS
from cm_jax.training import loop
from cm_jax.training.averages.decays import DECAYS
from cm_jax.training.optim import OPTIMIZERS
from cm_jax.training.schedules import SCHEDULES, Shape
from cm_jax.types import Condition, Needs, NoiseRange, Objective, ObjectiveOutput
from tests import tiny


@dataclasses.dataclass(frozen=True)
class Plain(Objective):
  """The squared error of D at one noise level; it asks for groups of two rows."""

  trains: ClassVar[str] = "diffusion"

  noise: NoiseRange
  level: float = 0.5

  @property
  def needs(self) -> Needs:
    return Needs(group=2)

  def progress(self, step):
    return {"toy_state": jnp.asarray(step)}

  def draw(self, key, batch, step):
    return jax.random.normal(key, batch["image"].shape)

  def loss(self, params, context, batch, draws, step):
    x, sigma = batch["image"], jnp.full(len(batch["image"]), self.level)
    error = context.student(params, Condition.of(batch), None)(x + self.level * draws, sigma) - x
    per_example = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    return ObjectiveOutput(
      per_example.mean(), per_example, sigma, {"toy_metric": error.mean(), **self.progress(step)}
    )


class OneLayer(Network):
  """A linear map of the channels."""

  hidden: int = 3

  @nn.compact
  def __call__(self, x, c_noise, condition=Condition(), *, train=False):  # noqa: B008
    return nn.Dense(self.out_channels)(nn.Dense(self.hidden)(x))


@dataclasses.dataclass(frozen=True)
class OneShot:
  """One evaluation at sigma_max, `num_steps` times over."""

  noise: NoiseRange
  num_steps: int = 2

  @property
  def nfe(self) -> int:
    return self.num_steps

  @property
  def sigmas(self) -> tuple[float, ...]:
    return (self.noise.sigma_max,)

  def __call__(self, denoiser, noise, shape):
    x = self.noise.sigma_max * noise(0, shape)
    for _ in range(self.num_steps):
      x = denoiser(x, jnp.full(shape[:1], self.noise.sigma_max))
    return x


@dataclasses.dataclass(frozen=True)
class Halved:
  """EDM's scalings with half of c_out."""

  noise: NoiseRange
  factor: float = 0.5
  trigflow: ClassVar[None] = None
  domain: ClassVar[None] = None

  def __call__(self, sigma, train=False):
    edm = EDM(self.noise)(sigma)
    return edm._replace(c_out=self.factor * edm.c_out)


@dataclasses.dataclass(frozen=True)
class Cubed:
  """The mean cube of the difference's size."""

  power: float = 3.0
  is_norm: ClassVar[bool] = False

  def load(self):
    return None

  def __call__(self, a, b, params=None):
    return jnp.mean(jnp.abs(a - b) ** self.power, axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Sgd:
  """The gradient itself."""

  scale: float = 1.0
  decays_weights: ClassVar[bool] = False

  def __call__(self):
    return optax.scale(self.scale)


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Always the same noise level."""

  level: float = 1.0

  def __call__(self, key, n):
    return jnp.full(n, self.level)

  def at(self, draw):
    return jnp.full_like(draw, self.level)


@dataclasses.dataclass(frozen=True)
class Third:
  """A mu of one third."""

  def __call__(self, step):
    return 1 / 3

  def gain(self, step):
    return 2 / 3


@dataclasses.dataclass(frozen=True)
class Straight:
  """The Monte Carlo drift by another name."""

  needs_teacher: ClassVar[bool] = False

  def __call__(self, context, batch, condition):
    return monte_carlo_drift(batch["image"])


@dataclasses.dataclass(frozen=True)
class Grey:
  """So many grey images of 8x8."""

  argument: str
  num_classes: int = 0
  fingerprint: str = "grey"

  @staticmethod
  def check(argument: str) -> None:
    int(argument)

  def __len__(self) -> int:
    return int(self.argument)

  def __getitem__(self, index: int):
    return {"image": np.full((8, 8, 1), 100 + index % 50, np.uint8), "label": -1}


@dataclasses.dataclass(frozen=True)
class Halves:
  """Every pair is a level and half of it."""

  noise: NoiseRange
  level: float = 1.0
  scales: ClassVar[None] = None

  def __call__(self, key, n, step):
    t = jnp.full(n, self.level)
    return t, t / 2

  def metrics(self, step):
    return {"level": jnp.asarray(self.level)}


class Shorter(Euler):
  """Euler's step, taken half way."""

  def __call__(self, drift, x, t, r):
    return super().__call__(drift, x, t, (t + r) / 2)


@dataclasses.dataclass(frozen=True)
class Lagging:
  """An average that keeps all but one part in `lag`."""

  lag: int

  def decay(self, scales):
    return Ema(1 - 1 / self.lag).decay(scales)


TOYS = {
  "objective": (
    OBJECTIVES,
    Plain,
    lambda config: setattr(config, "objective", {"name": "toy", "level": 1.5}),
  ),
  "network": (
    NETWORKS,
    OneLayer,
    lambda config: setattr(config, "network", {"name": "toy_kind", "hidden": 2}),
  ),
  "precond": (PRECONDS, Halved, lambda config: setattr(config, "precond", {"name": "toy", "factor": 0.25})),
  "sampler": (SAMPLERS, OneShot, lambda config: setattr(config, "sampler", {"name": "toy", "num_steps": 3})),
  "distance": (
    DISTANCES,
    Cubed,
    lambda config: setattr(config.objective, "distance", {"name": "toy", "power": 2.0}),
  ),
  "drift": (DRIFTS, Straight, lambda config: config.objective.update({"drift": "toy"})),
  "levels": (
    LEVELS,
    Fixed,
    lambda config: setattr(config, "objective", {"name": "denoising", "levels": {"name": "toy"}}),
  ),
  "optimizer": (
    OPTIMIZERS,
    Sgd,
    lambda config: setattr(config, "optimizer", {"name": "toy", "learning_rate": 0.01}),
  ),
  "decay": (DECAYS, Third, lambda config: setattr(config.averages, "toy", {"name": "toy"})),
  "schedule": (
    SCHEDULES,
    Shape(lambda k, length: 1 / (1 + k)),
    lambda config: config.optimizer.update({"schedule": "toy"}),
  ),
  "source": (SOURCES, Grey, lambda config: config.data.update({"source": "toy:64"})),
  "pairs": (
    PAIRS,
    Halves,
    lambda config: setattr(config, "objective", {**tiny.ECT, "pairs": {"name": "toy", "level": 2.0}}),
  ),
  "curriculum": (
    CURRICULA,
    lambda first: Curriculum((0, 1), (first, first + 3)),
    lambda config: setattr(config.objective.pairs, "scales", {"name": "toy", "first": 5}),
  ),
  "solver": (SOLVERS, Shorter(), lambda config: config.objective.update({"solver": "toy"})),
  "weight": (
    WEIGHTS,
    lambda t, r, sigma_data: (t - r) / sigma_data,
    lambda config: config.objective.update({"weight": "toy"}),
  ),
  "target": (
    TARGETS,
    Lagging,
    lambda config: setattr(config, "objective", {**tiny.CT, "target": {"name": "toy", "lag": 3}}),
  ),
  "grid": (
    GRIDS,
    lambda num_points, noise, span: np.geomspace(span[1], span[0], num_points),
    lambda config: setattr(config, "sampler", {"name": "heun", "num_steps": 3, "grid": "toy"}),
  ),
}


QUICK = ("objective",)


@pytest.mark.parametrize(
  "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in TOYS]
)
def test_a_toy_is_trained_stored_resumed_and_sampled(kind, tmp_path, monkeypatch, capsys):
  registry, toy, choose = TOYS[kind]
  monkeypatch.setitem(registry, "toy_kind" if kind == "network" else "toy", toy)
  config = tiny.config(tiny.CT, num_steps=2)
  with config.unlocked(), config.ignore_type():
    choose(config)
  experiment = build(config)
  assert int(loop.train(experiment, tmp_path / "run", progress=False).step) == 2
  losses = [
    json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  ]
  assert len(losses) == 2 and np.isfinite(losses).all()
  assert cli.run(["train", f"--workdir={tmp_path / 'run'}", "--noprogress", "--config.run.num_steps=3"]) == 0
  assert "trained to step 3" in capsys.readouterr().out
  flags = ["--sampler=toy", "--num_steps=2"] if kind == "sampler" else []
  out = tmp_path / "x.npz"
  assert cli.run(["sample", f"--workdir={tmp_path / 'run'}", f"--out={out}", "--num=4", *flags]) == 0, (
    capsys.readouterr().err
  )
  with np.load(out) as samples:
    assert samples["arr_0"].shape == (4, 8, 8, 1)


@pytest.mark.slow
def test_a_field_of_a_toy_is_set_by_a_flag(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(OBJECTIVES, "toy", Plain)
  loop.train(build(tiny.config({"name": "toy"}, num_steps=1)), tmp_path, progress=False)
  assert json.loads((tmp_path / "config.json").read_text())["objective"] == {"name": "toy", "level": 0.5}
  assert cli.run(["train", f"--workdir={tmp_path}", "--config.objective.level=0.7"]) == 2
  assert "config.objective.level = 0.7: expected 0.5 as in" in capsys.readouterr().err
  config = tiny.config({"name": "toy"})
  config.accumulation = 8
  config.batch_size = 64
  build(config)
  config.accumulation = 64  # which tears the groups of two
  with pytest.raises(Exception, match=r"config\.batch_size"):
    build(config)


@dataclasses.dataclass(frozen=True)
class Brightness:
  """The mean pixel of the samples."""

  records: ClassVar[dict[str, str]] = {"toy": "toy_brightness"}
  baseline: ClassVar[str] = "real"
  columns: ClassVar[dict[str, str]] = {"brightness": "{toy:.1f} ({toy_real:.1f})"}
  about: ClassVar[str] = "brightness: mean pixel."
  needs: ClassVar[tuple[str, ...]] = ("images",)
  needs_real: ClassVar[tuple[str, ...]] = ()
  needs_baseline: ClassVar[tuple[str, ...]] = ("images",)
  only: ClassVar[tuple[str, ...]] = ()

  def values(self, samples, real):
    return {"toy": float(samples.images.mean())}

  def of_real(self, real):
    return float(real.collected.images.mean()), real.collected.count


@pytest.mark.slow
def test_a_metric_is_measured_recorded_and_reported(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(METRICS, "toy", Brightness())
  loop.train(build(tiny.config(num_steps=2)), tmp_path / "mine", progress=False)
  features = tmp_path / "features"
  assert cli.run(["train-features", "--source=digits:test", f"--out={features}"]) == 0
  measure = [
    "evaluate",
    f"--workdir={tmp_path / 'mine'}",
    f"--features={features}",
    "--num=20",
    "--num_steps=2",
  ]
  assert cli.run(measure) == 0, capsys.readouterr().err
  records = [json.loads(line) for line in (tmp_path / "mine" / "evaluations.jsonl").read_text().splitlines()]
  found = {record["metric"]: record["value"] for record in records}
  assert 0 <= found["toy_brightness"] <= 255 and found["toy_brightness_real"] > 0
  capsys.readouterr()
  assert cli.run(["report", f"--folder={tmp_path}"]) == 0
  table = capsys.readouterr().out
  assert (
    "brightness" in table and f"{found['toy_brightness']:.1f} ({found['toy_brightness_real']:.1f})" in table
  )


class Corners:
  """Four pixels of an image of any size, as floats."""

  name, hash, image_shape, size, resize = "toy", "c" * 64, None, 4, "none"
  gives: ClassVar[tuple[str, ...]] = ()

  def __call__(self, images, also=()):
    return Extracted(images[:, ::7, ::7, 0].reshape(len(images), -1).astype(np.float32))


@pytest.mark.slow
def test_a_network_that_measures_is_a_class_and_a_line(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(FEATURES, "toy", lambda weights: Corners())
  random = np.random.default_rng(0)
  np.savez(tmp_path / "samples.npz", random.integers(0, 256, (60, 8, 8, 1), np.uint8))
  command = ["evaluate", f"--images={tmp_path / 'samples.npz'}", "--reference=digits", "--features=toy"]
  command += ["--metrics=fd", "--num=60", f"--out={tmp_path}"]
  assert cli.run(command) == 0, capsys.readouterr().err
  records = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
  assert all(record["features_hash"] == "c" * 64 for record in records)
  assert any(record["metric"] == "fd_toy" and record["value"] > 0 for record in records), records


def test_a_command_is_a_module_and_a_line(monkeypatch, capsys):
  from absl import flags

  def define(values):
    flags.DEFINE_integer("times", 1, "How often.", flag_values=values)

  module = types.ModuleType("cm_jax.cli.toy_command", "Say hello: python -m cm_jax toy-command --times=2")
  module.define, module.main = define, lambda values: print("hello " * values.times)
  monkeypatch.setitem(sys.modules, "cm_jax.cli.toy_command", module)
  monkeypatch.setitem(cli.COMMANDS, "toy-command", "say hello")
  assert cli.run(["toy-command", "--times=2"]) == 0
  assert capsys.readouterr().out == "hello hello \n"
  assert cli.run(["toy-command", "--help"]) == 0 and "toy-command --times=2" in capsys.readouterr().out
  assert cli.run(["toy-command", "--time=2"]) == 2 and "--times" in capsys.readouterr().err
