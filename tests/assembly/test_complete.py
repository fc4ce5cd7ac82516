"""Complete configs: every default of every component stored, every key settable, a later default without
effect."""

import dataclasses
import json

import jax
import ml_collections
import numpy as np
import pytest

from cm_jax import cli
from cm_jax.assembly import assemble, build, complete, load_model
from cm_jax.assembly.complete import current
from cm_jax.assembly.components import options_of
from cm_jax.cli.config_flags import override
from cm_jax.config import default, plain_json, sha256
from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS
from cm_jax.networks.toy import ToyNet
from cm_jax.training import loop
from tests import tiny
from tests.examples import EXAMPLES, REGISTRIES, entry

SHAPE = (8, 8, 1)


@pytest.mark.parametrize("name", EXAMPLES["objective"])
def test_a_complete_config_is_the_same_method_and_completing_it_again_changes_nothing(name):
  config = tiny.config(EXAMPLES["objective"][name])
  whole = complete(config)
  assert plain_json(complete(whole)) == plain_json(whole)
  assert json.loads(json.dumps(plain_json(whole), allow_nan=False)) == plain_json(whole)
  one, two = assemble(config, SHAPE, 10), assemble(whole, SHAPE, 10)
  assert (one.objective, one.sampler, one.noise) == (two.objective, two.sampler, two.noise)
  assert sha256(one.config) == sha256(two.config)


def test_nothing_is_opened_placed_or_computed_to_assemble():
  """In a new process no backend has been started by then."""
  import subprocess
  import sys

  program = """
from cm_jax.assembly import assemble
from cm_jax.config import default
from jax._src import xla_bridge
config = default()
config.data.source = "folder:/no/such/place"
config.network.update({"model_channels": 8, "num_blocks": 1})
assemble(config, (32, 32, 3), 0)
assert not xla_bridge.backends_are_initialized()
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["network", "precond", "sampler", "objective"])
def test_every_field_of_every_component_is_stored(kind):
  for name, section in EXAMPLES[kind].items():
    stored = complete({kind: section})[kind]
    derived = ("img_resolution", "in_channels", "out_channels", "label_dim") if kind == "network" else ()
    wanted = {key for key, field in options_of(REGISTRIES[kind][entry(name)]).items() if field not in derived}
    assert set(stored) - {"name"} == wanted, name


def test_a_default_that_changes_later_does_not_change_an_old_run(tmp_path, monkeypatch):
  loop.train(build(tiny.config(num_steps=3)), tmp_path, progress=False)

  @dataclasses.dataclass
  class Later(ToyNet):
    width: int = 8
    dropout: float = 0.5

  monkeypatch.setitem(NETWORKS, "toy", Later)
  assert load_model(tmp_path).network["dropout"] == 0.0
  state = loop.train(
    build(current(json.loads((tmp_path / "config.json").read_text()))), tmp_path, progress=False
  )
  assert int(state.step) == 3


@pytest.mark.parametrize(
  ("argument", "at", "value"),
  [
    ("--config.network.augment_dim=9", "network.augment_dim", 9),  # F9: fields that no config names
    ("--config.network.guidance_embedding=true", "network.guidance_embedding", True),
    ("--config.objective.label_dropout=0.1", "objective.label_dropout", 0.1),
    ("--config.optimizer.b2=0.99", "optimizer.b2", 0.99),
    ("--config.sampler.S_churn=40", "sampler.S_churn", 40.0),
    ("--config.averages.ema.ramp_up=0.1", "averages.ema.ramp_up", 0.1),
    ("--config.precond.time_scale=1000", "precond.time_scale", 1000.0),
    ("--config.network.channel_mult=(1, 2)", "network.channel_mult", (1, 2)),
    ("--config.num_images=1000", "num_images", 1000),
  ],
)
def test_every_key_can_be_set_by_a_flag(argument, at, value):
  found = override(default(), [argument])
  for key in at.split("."):
    found = found[key]
  assert found == value and type(found) is type(value)


def test_another_name_leaves_the_old_components_defaults_behind():
  config = override(tiny.config(tiny.ECT), ["--config.sampler.name=heun"])
  config.sampler = {"name": "heun"}  # ECT's own section had sigmas, which Heun has not
  assert "sigmas" not in override(default(), ["--config.sampler.name=euler"]).sampler
  assert override(tiny.config(tiny.ECT), ["--config.objective.target=ema"]).objective.target == "ema"
  named = tiny.config({**tiny.CT, "distance": "l2"})
  assert override(named, ["--config.objective.distance.size=4"]).objective.distance.to_dict() == {
    "name": "l2",
    "size": 4,
  }


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.network.widht=3", "--config.network.widht = 3: expected 'width'"),
    ("--config.batch_size=many", "--config.batch_size = many"),
    ("--config.seed.x=1", "--config.seed.x = 1"),
    ("--config.network.remat=perhaps", "--config.network.remat = perhaps"),
  ],
)
def test_a_wrong_flag_is_named(argument, message):
  with pytest.raises(UserError) as refused:
    override(tiny.config(), [argument])
  assert message in str(refused.value)


def test_a_typo_is_told_before_data_is_opened():
  config = tiny.config()
  config.data.source = "folder:/no/such/place"
  config.network = {"name": "toy", "widht": 4}
  with pytest.raises(UserError, match=r"config\.network\.widht = 4: expected 'width'"):
    build(config)


@pytest.mark.slow
def test_a_two_time_student_starts_from_a_one_time_model_as_the_same_function(tmp_path):
  loop.train(build(tiny.config(num_steps=3)), tmp_path, progress=False)
  config = tiny.config()
  config.network = {"name": "toy", "width": 8, "second_time": True}
  config.init.path = str(tmp_path)
  experiment = build(config)
  old = load_model(tmp_path)
  x, sigma = np.ones((2, 8, 8, 1), np.float32), np.full(2, 2.0, np.float32)
  g = experiment.method.student.flow_map(experiment.initial_params)
  for s in (0.0, 0.5, 2.0):
    got = g(x, sigma, np.full(2, s, np.float32))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(old.denoiser()(x, sigma)))
  assert len(jax.tree.leaves(experiment.initial_params)) > len(jax.tree.leaves(old.params))
  config.network.width = 4
  with pytest.raises(UserError, match=r"config\.init\.path = "):
    build(config)


def test_the_public_names_are_what_they_say(capsys):
  import cm_jax
  import cm_jax.assembly  # whose import must not hide a function
  from cm_jax import build as built
  from cm_jax import edit, evaluate

  assert all(
    callable(function) for function in (built, edit, evaluate, cm_jax.build, cm_jax.evaluate, cm_jax.edit)
  )
  assert set(cm_jax.__all__) <= set(dir(cm_jax))
  assert cli.run(["--help"]) == 0 and "train" in capsys.readouterr().out


def test_an_unknown_name_is_left_for_assemble_to_say():
  config = tiny.config()
  config.network = {"name": "tyo"}
  assert complete(config).network.to_dict() == {"name": "tyo"}
  with pytest.raises(UserError, match=r"config\.network\.name = tyo: expected 'toy'"):
    assemble(config, SHAPE, 0)
  assert isinstance(complete(config), ml_collections.ConfigDict)
