"""Whatever a config.json says, it is a run's config or one line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.assembly.complete import complete, current
from cm_jax.assembly.form import SECTIONS
from cm_jax.assembly.method import assemble
from cm_jax.config import plain_json
from cm_jax.errors import UserError
from tests import tiny

SHAPE = (8, 8, 1)
VALUES = (None, [], {}, "x", -1, 1e308, True, 10**18, {"name": ["a"]}, [[1]], {"name": "nope"}, {"a.b": 1})


@pytest.fixture(scope="module")
def stored() -> dict:
  config = tiny.config(tiny.CT)
  config.data.image_shape = SHAPE
  return {**plain_json(complete(config)), "format": 2}


def paths(tree: dict, above: tuple[str, ...] = ()):
  for key, value in tree.items():
    yield (*above, key)
    if isinstance(value, dict):
      yield from paths(value, (*above, key))


def put(tree: dict, path: tuple[str, ...], value) -> dict:
  inner = changed = json.loads(json.dumps(tree))
  for key in path[:-1]:
    inner = inner[key]
  inner[path[-1]] = value
  return changed


@pytest.mark.slow
def test_any_value_in_any_place_is_taken_or_one_line(stored):
  refused = 0
  for path in paths({key: value for key, value in stored.items() if key != "format"}):
    for value in VALUES:
      try:
        assemble(current(put(stored, path, value)), SHAPE, 0)
      except UserError as error:
        refused += 1
        assert "\n" not in str(error)
      except Exception as error:
        raise AssertionError(f"{path} = {value}") from error
  assert refused > 500


@pytest.mark.parametrize(
  "path,value,said",
  [
    (("noise",), None, "config.noise"),
    (("run",), [3], "config.run"),
    (("mesh", "fsdp"), 1.5, "config.mesh.fsdp"),
    (("init", "path"), {"a": 1}, "config.init.path"),
    (("data", "image_shape"), [16, 16], "config.data.image_shape"),
    (("data", "image_shape"), [8, 8, True], "config.data.image_shape"),
    (("objective", "pairs", "name"), ["karras"], "config.objective.pairs.name"),
    (("sampler",), {"num_steps": 3}, "config.sampler"),
    (("optimizer",), {"b.1": 0.9, "name": "adam"}, "config.optimizer.b.1"),
    (("seed",), True, "config.seed"),
  ],
)
def test_a_key_of_another_form_is_named(stored, path, value, said):
  with pytest.raises(UserError, match=f"^{said} = "):
    current(put(stored, path, value))


@pytest.mark.parametrize("key", SECTIONS)
def test_a_section_that_is_gone_is_named(stored, key):
  with pytest.raises(UserError, match=f"^config.{key} = missing"):
    current({name: value for name, value in stored.items() if name != key})


@pytest.mark.parametrize("key", ["drift", "pairs", "target", "distance"])
def test_a_component_that_has_to_be_there_is_not_null(key):
  config = tiny.config(tiny.CT)
  with config.unlocked(), config.objective.ignore_type():
    config.objective[key] = None
  with pytest.raises(UserError, match=f"config.objective.{key} = None: expected one of"):
    build(config)


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("data.source", np.zeros((2, 8, 8, 1), np.uint8), r"config.data.source = <ndarray>: .*python:MODULE"),
    ("sampler.sigmas", (80.0, np.float32(1.5)), r"config.sampler.sigmas\[1\] = <float32>: expected text"),
    ("optimizer.learning_rate", jnp.asarray(1e-3), r"config.optimizer.learning_rate = <ArrayImpl>"),
    ("run.sample_every", {3}, r"config.run.sample_every = <set>"),
  ],
)
def test_a_value_that_no_file_can_keep_is_named(path, value, said):
  config = tiny.config(tiny.ECT)
  section, _, key = path.rpartition(".")
  with config.ignore_type():
    config[section][key] = value
  with pytest.raises(UserError, match=said):
    build(config)
