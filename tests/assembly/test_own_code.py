"""A component of the person's own code, `python:MODULE:CLASS`: one of its kind, where it is named now."""

import json
import sys

import numpy as np
import pytest

from cm_jax import cli, outside
from cm_jax.assembly import build, load_model
from cm_jax.cli.config_flags import override
from cm_jax.config import default
from cm_jax.diffusion.distances import DISTANCES
from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS
from cm_jax.objectives import OBJECTIVES
from cm_jax.sampling import SAMPLERS

MODULE = '''
import dataclasses
import pathlib
from typing import ClassVar
import flax.linen as nn
import jax
import jax.numpy as jnp
from cm_jax.diffusion.distances import DISTANCES
from cm_jax.networks.base import Network
from cm_jax.sampling import Euler
from cm_jax.types import Condition, Needs, NoiseRange, Objective, ObjectiveOutput
pathlib.Path(__file__).with_name("ran").touch()

@dataclasses.dataclass(frozen=True)
class Loss(Objective):
  trains: ClassVar[str] = "diffusion"
  noise: NoiseRange
  level: float
  distance: object = DISTANCES["l2"]()
  @property
  def needs(self):
    return Needs()
  def draw(self, key, batch, step):
    return jax.random.normal(key, batch["image"].shape)
  def loss(self, params, context, batch, draws, step):
    x, sigma = batch["image"], jnp.full(len(batch["image"]), self.level)
    found = context.student(params, Condition.of(batch), None)(x + self.level * draws, sigma)
    each = self.distance(found, x)
    return ObjectiveOutput(each.mean(), each, sigma, {})

class Linear(Network):
  hidden: int = 2
  @nn.compact
  def __call__(self, x, c_noise, condition=Condition(), *, train=False):
    return nn.Dense(self.out_channels)(nn.Dense(self.hidden)(x))

@dataclasses.dataclass(frozen=True)
class Cubes:
  power: float = 3.0
  def __call__(self, x, y, params=None):
    return jnp.mean(jnp.abs(x - y) ** self.power, axis=(1, 2, 3))

@dataclasses.dataclass(frozen=True)
class Walk(Euler):
  """Euler's under another name."""

number = 3
raise_it = lambda: 1 / 0
'''
CONFIG = """
from cm_jax.config import default
def get_config():
  c = default()
  c.batch_size, c.num_images = 8, 24
  c.network = {"name": "python:own_parts:Linear", "hidden": 3}
  c.objective = {"name": "python:own_parts:Loss", "level": 0.4}
  c.sampler = {"name": "python:own_parts:Walk", "num_steps": 3}
  c.optimizer.warmup_images = 0
  c.averages = {"ema": {"name": "constant", "mu": 0.5}}
  c.run.update({"num_samples": 0, "checkpoint_every": 3, "log_every": 1})
  return c
"""
PARTS = ("Linear", "Loss", "Walk", "Cubes")
NAMED = [f"--code=python:own_parts:{part}" for part in PARTS]


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A folder with the module and a config that names it; the mark says whether the module ran."""
  (tmp_path / "own_parts.py").write_text(MODULE)
  (tmp_path / "broken_parts.py").write_text("nothing = undefined\n")
  (tmp_path / "config.py").write_text(CONFIG)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  for name in ("own_parts", "broken_parts"):
    sys.modules.pop(name, None)


@pytest.fixture
def named_now():
  with outside.named_in_the_block():
    yield


def ran(own) -> bool:
  """Whether the module ran since it was asked the last time; the next command finds it not imported yet."""
  mark, found = own / "ran", (own / "ran").exists()
  mark.unlink(missing_ok=True)
  sys.modules.pop("own_parts", None)
  return found


@pytest.mark.slow
def test_own_parts_train_and_sample_where_they_are_named_now_and_nowhere_else(own, capsys, monkeypatch):
  monkeypatch.syspath_prepend(own)
  train = ["train", f"--workdir={own / 'run'}", "--noprogress"]
  level = "--config.objective.level=0.3"
  assert (
    cli.run([*train, "--config=config.py", "--config.objective.distance=python:own_parts:Cubes", level]) == 0
  )
  assert ran(own) and not any(map(outside.is_code, (*OBJECTIVES, *NETWORKS, *DISTANCES, *SAMPLERS)))
  stored = json.loads((own / "run" / "config.json").read_text())
  objective = {"distance": {"name": "python:own_parts:Cubes", "power": 3.0}, "level": 0.3}
  assert (
    stored["objective"] == {"name": "python:own_parts:Loss", **objective} and stored["kind"] == "diffusion"
  )
  capsys.readouterr()

  sample = ["sample", f"--workdir={own / 'run'}", "--num=2", "--sampler=euler", "--num_steps=2"]
  assert cli.run([*sample, f"--out={own / 'a.npz'}"]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "--code=python:own_parts:Linear" in said and not ran(own)
  assert cli.run([*sample, f"--out={own / 'a.npz'}", NAMED[0]]) == 0 and ran(own)  # its loss is not needed
  assert cli.run(["sample", f"--workdir={own / 'run'}", "--num=2", f"--out={own / 'b.npz'}", *NAMED]) == 0
  assert np.load(own / "b.npz")["arr_0"].shape == (2, 8, 8, 1) and ran(own)

  capsys.readouterr()
  assert cli.run(train) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "to be given again" in said and not ran(own)
  assert cli.run([*train, *NAMED[:3]]) == 2 and "Cubes" in capsys.readouterr().err
  assert cli.run([*train, *NAMED]) == 0
  flags = [
    f"--config.{key}.name=python:own_parts:{part}"
    for key, part in zip(("network", "objective"), PARTS, strict=False)
  ]
  flags += ["--config.objective.distance.name=python:own_parts:Cubes", NAMED[2]]
  assert cli.run([*train, *flags]) == 0


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("objective=python:own_parts:number", "a class or a function, not int"),
    ("objective=python:own_parts:Linear", r"derives from cm_jax\.\S*Objective"),
    ("network=python:own_parts:Loss", r"derives from cm_jax\.networks\.base\.Network"),
    ("objective=python:own_parts:Los", "python:MODULE:CLASS .AttributeError"),
    ("objective=python:no_such_parts:Loss", "python:MODULE:CLASS .ModuleNotFoundError"),
    ("objective=python:broken_parts:Loss", "python:MODULE:CLASS .NameError"),
    ("sampler=python:own_parts", "python:MODULE:CLASS"),
    ("objective=python:own_parts:Loss", "set: it has no default"),
    ("objective=consistency", "set: it has no default; one of: .*continuous"),
    ("network=python:own_parts:Linear --config.network.hiden=3", "'hidden' .did you mean it"),
  ],
)
def test_what_is_wrong_with_it_is_one_line(own, named_now, monkeypatch, argument, expected):
  monkeypatch.syspath_prepend(own)
  with pytest.raises(UserError, match=expected) as refused:
    build(override(default(), f"--config.{argument}".split()))
  assert "\n" not in str(refused.value) and refused.value.field.lstrip("-").startswith("config.")


def test_a_library_caller_names_it_in_the_config(own, named_now, monkeypatch):
  monkeypatch.syspath_prepend(own)
  config = default()
  config.data.source = "digits"
  config.network = {"name": "python:own_parts:Linear"}
  config.objective = {"name": "python:own_parts:Loss", "level": 1.0}
  assert type(build(config).method.objective).__name__ == "Loss" and ran(own)


@pytest.mark.slow
def test_anothers_network_is_not_named_by_asking_for_the_network_of_a_teacher(own, monkeypatch):
  monkeypatch.syspath_prepend(own)
  with outside.named_in_the_block():
    assert cli.run(["train", "--config=config.py", f"--workdir={own / 'run'}", "--noprogress"]) == 0
  assert ran(own)
  config = default()
  config.data.source, config.network, config.teacher.path = "digits", {"name": "teacher"}, str(own / "run")
  with pytest.raises(UserError, match="the network of config.teacher.path = python:own_parts:Linear"):
    build(config)
  with pytest.raises(UserError, match="--code=python:own_parts:Linear"):
    load_model(own / "run")
  assert not ran(own)


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_command_does_not_look_where_the_last_ones_config_lay(own, monkeypatch, capsys, fails):
  """Two configs of one process, each with a module of the same name beside it."""
  monkeypatch.delitem(sys.modules, "own_parts", raising=False)
  before = [*sys.path]
  line = ["train", f"--workdir={own / 'run'}", "--dry_run", "--config.network.name=python:own_parts:Linear"]
  assert cli.run([*line, "--config=config.py", *["--config.network.hiden=3"] * fails]) == (2 if fails else 0)
  assert sys.path == before and ran(own)
  (own / "other").mkdir()
  (own / "other" / "config.py").write_text(CONFIG)
  assert cli.run([*line, "--config=other/config.py"]) == 2
  assert "No module named 'own_parts'" in capsys.readouterr().err
