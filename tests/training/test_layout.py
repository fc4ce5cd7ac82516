"""Where arrays live is what the rules say: the first that fits; large networks by shape, a toy for real."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.assembly import build
from cm_jax.benchmark.plan.memory import shared_bytes, tree_bytes
from cm_jax.benchmark.plan.setting import of_config
from cm_jax.cli.config_flags import read_file
from cm_jax.errors import UserError
from cm_jax.training import layout, loop, sharding
from cm_jax.training.program import Program
from tests import tiny


def shapes(**sizes: tuple[int, ...]):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}


def test_the_first_rule_that_fits_decides():
  tree = {"net": shapes(big=(512, 384), small=(12, 8), odd=(7, 5))}
  rules = layout.read_rules((("small$", "fsdp_small"), ("^teacher/", "replicate"), ("big", "fsdp_outputs")))
  specs = lambda kind: jax.tree.map(tuple, layout.specs(tree, 4, rules, kind))["net"]
  assert specs("params") == {"big": (None, "fsdp"), "small": ("fsdp", None), "odd": ()}
  assert specs("teacher") == {"big": (), "small": ("fsdp", None), "odd": ()}
  assert tuple(layout.specs(tree, 4)["net"]["big"]) == ("fsdp", None)  # the largest dimension without a rule


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ("replicate", "^rules = replicate: expected pairs"),
    ((("a", "b", "c"),), "^rules = .*: expected a pair"),
    ((("(", "replicate"),), r"^rules = \(: expected a regular expression"),
    ((("net", "replicated"),), "^rules = replicated: expected .*replicate"),
  ],
)
def test_rules_that_are_none(rules, message):
  with pytest.raises(UserError, match=message):
    layout.read_rules(rules)


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ((("^techer/", "replicate"),), r"\^techer/: expected a pattern found in the name of .*, such as params/"),
    ((("net", "fsdp"), ("conv1", "replicate")), "conv1: expected a pattern that .* no rule before"),
  ],
)  # fmt: skip
def test_a_rule_that_decides_nothing_is_told_before_anything_is_made(rules, message):
  config = tiny.config()
  config.mesh.rules = rules
  with pytest.raises(UserError, match=r"config\.mesh\.rules = " + message):
    build(config)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("config", "rules"),
  [("imagenet64_ect.py:xl", ()), ("imagenet64_edm.py", (("^averages/", "replicate"),))],
)
def test_large_networks_on_eight_devices_by_shape(config, rules):
  """Without allocating: arrays of a megabyte are shared by all eight, but for what a rule leaves whole."""
  config = read_file(f"configs/{config}")
  config.data.image_shape, config.data.num_classes = (64, 64, 3), 1000
  state = of_config(config).state
  specs = layout.specs(state, 8, layout.read_rules(rules), "state")
  names = jax.tree.leaves(layout.names(state, "state"))
  is_spec = lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec)
  for name, leaf, spec in zip(
    names, jax.tree.leaves(state), jax.tree.leaves(specs, is_leaf=is_spec), strict=True
  ):
    whole = rules and name.startswith("averages/")
    assert any(spec) == (leaf.size >= 2**18 and not whole) or leaf.size < 2**18
    assert all(leaf.shape[i] % 8 == 0 for i, axis in enumerate(spec) if axis)
  params = state.params
  assert tree_bytes(params) / 8 <= shared_bytes(params, 8) < 1.02 * tree_bytes(params) / 8


@pytest.mark.slow
def test_a_run_under_rules_is_the_same_run(tmp_path, monkeypatch):
  monkeypatch.setattr(layout, "LARGE_LEAF", 64)  # so that even the toy's leaves are split
  losses = {}
  for name, rules in (("plain", ()), ("ruled", (("^averages/", "replicate"), ("/mu/", "fsdp_small")))):
    config = tiny.config(num_steps=3)
    config.mesh.fsdp, config.mesh.rules = 4, rules
    experiment = dataclasses.replace(build(config), mesh=sharding.make_mesh(2, 4))
    state = loop.train(experiment, tmp_path / name, progress=False)
    rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    losses[name] = [json.loads(row)["loss"] for row in rows]
    shared = {
      array_name: any(leaf.sharding.spec)
      for array_name, leaf in zip(
        jax.tree.leaves(layout.names(state, "state")), jax.tree.leaves(state), strict=True
      )
    }
    assert any(on for array, on in shared.items() if array.startswith("params/"))
    assert any(on for array, on in shared.items() if array.startswith("averages/")) == (name == "plain")
    assert Program(experiment).shardings.params == jax.tree.map(lambda leaf: leaf.sharding, state.params)
  np.testing.assert_allclose(losses["plain"], losses["ruled"], rtol=1e-5)
  # and a resume may lay it out otherwise
  config = tiny.config(num_steps=5)
  resumed = loop.train(build(config), tmp_path / "ruled", progress=False)
  assert int(resumed.step) == 5
