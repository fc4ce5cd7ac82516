"""Small arrays packed for the update: what every rule makes of them alone and together, on any mesh."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm_jax.assembly import assemble, build
from cm_jax.networks import frozen
from cm_jax.training import loop, sharding
from cm_jax.training import step as step_lib
from cm_jax.training.averages.decays import HalfLife, Power
from cm_jax.training.layout import read_rules
from cm_jax.training.optim import OPTIMIZERS, AdamW, Optimizer
from cm_jax.training.packing import SMALL, Packing
from tests import tiny
from tests.compiling import quick_jit
from tests.examples import EXAMPLES
from tests.training.test_train import losses, mesh

SHAPES = {
  **{f"bias_{i}": (5,) for i in range(7)}, **{f"kernel_{i}": (1, 1, 2, 3) for i in range(4)},
  "scalar": (), "empty": (0,), "scalar_2": (), "large": (2, SMALL // 2), "nearly": (SMALL - 1,),
}  # fmt: skip


def tree(seed: int, scale: float = 1.0):
  generator = np.random.default_rng(seed)
  draw = lambda shape: np.float32(scale * generator.normal(size=shape))
  arrays = {name: draw(shape) for name, shape in SHAPES.items()}
  return {"net": {**arrays, "emb": {"freqs": draw(5)}}, "weighting": {"bias": draw(5)}}


@pytest.mark.parametrize(
  "rule, clip_norm",
  [("adamw", 0.5), *(pytest.param(rule, 0.0, marks=pytest.mark.slow) for rule in OPTIMIZERS)],
)
def test_together_is_alone(rule, clip_norm):
  decay = 0.3 if OPTIMIZERS[rule].decays_weights else 0.0
  optimizer = Optimizer(OPTIMIZERS[rule](), 0.1, weight_decay=decay, clip_norm=clip_norm)(
    {"a": 0.9, "b": Power(0.1), "c": HalfLife(3.0)}, frozen=frozen
  )

  @functools.partial(quick_jit, static_argnums=0)
  def steps(group):
    params, packing = tree(0), Packing(tree(0), frozen(tree(0)), group)
    state = optimizer.init(params)
    for number in range(2):
      grads, packed, params = packing.pack((tree(number + 1), state, params))
      updates, packed = optimizer.update(grads, packed, params, step=jnp.array(number), value=jnp.array(1.0))
      params, state = packing.unpack((optax.apply_updates(params, updates), packed))
    return params, state

  alone, together = steps(1000), steps(3)
  compare = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)
  (compare if clip_norm else chex.assert_trees_all_equal)(alone, together)


def test_what_is_packed():
  packing = Packing(tree(0), frozen(tree(0)), group=2)
  packed = packing.pack(tree(1))["net"]
  assert [name for name, leaf in packed.items() if leaf is None] == [
    "bias_1", "bias_3", "bias_5", "kernel_1", "kernel_3", "scalar_2",
  ]  # fmt: skip
  assert packed["bias_0"].tolist() == [*tree(1)["net"]["bias_0"], *tree(1)["net"]["bias_1"]]
  assert packed["emb"]["freqs"].shape == (5,)
  assert packed["bias_6"].tolist() == [*tree(1)["net"]["bias_6"], *tree(1)["weighting"]["bias"]]


def test_only_what_says_so_is_elementwise():
  @dataclasses.dataclass(frozen=True)
  class Muon(AdamW):
    elementwise = False

  @dataclasses.dataclass(frozen=True)
  class Silent:
    decays_weights = False

    def __call__(self):
      return optax.scale_by_trust_ratio()

  assert not Optimizer(Muon()).elementwise and not Optimizer(Silent()).elementwise
  assert all(Optimizer(rule()).elementwise for rule in OPTIMIZERS.values())


@pytest.mark.slow
def test_weights_projected_by_their_norm_are_not_packed():
  config = tiny.config()
  apart = lambda: assemble(config, (8, 8, 1), 0).apart
  assert apart() is frozen
  config.network = EXAMPLES["network"]["edm2"]
  assert apart() is None


@pytest.mark.slow
def test_what_is_shared_between_devices_may_be_packed():
  """By a layout that shares small arrays too: the same numbers, each where it was."""
  optimizer, params = Optimizer(learning_rate=0.1)({"a": 0.9, "b": Power(0.1)}), tree(0)
  packing = Packing(params, frozen(params), group=2)

  def step(params, state, grads):
    grads, state, params = packing.pack((grads, state, params))
    updates, state = optimizer.update(grads, state, params, step=jnp.array(0), value=jnp.array(1.0))
    return packing.unpack((optax.apply_updates(params, updates), state))

  arguments = params, optimizer.init(params), tree(1)
  results = []
  for data, fsdp in ((1, 1), (2, 4)):
    where = sharding.tree_shardings(arguments, mesh(data, fsdp), read_rules((("", "fsdp_small"),)), "state")
    compiled = quick_jit(step, in_shardings=where, out_shardings=where[:2])
    results.append(compiled(*jax.device_put(arguments, where)))
    spread = [leaf for leaf in jax.tree.leaves(results[-1]) if not leaf.sharding.is_fully_replicated]
    assert bool(spread) == (fsdp > 1)
  chex.assert_trees_all_close(*jax.device_get(results), rtol=1e-6)


@pytest.mark.slow
def test_a_run_is_the_same(tmp_path, monkeypatch):
  """With several averages and micro-batches; each array of the toy is a group of its own."""
  curves, packed = [], []
  for group in (1000, 1):

    def packing(params, apart, group=group):
      packed.append(jax.tree.map(jnp.ndim, (made := Packing(params, apart, group)).pack(params)))
      return made

    monkeypatch.setattr(step_lib, "Packing", packing)
    config = tiny.config(tiny.CT)
    config.accumulation = 2
    config.averages = {"ema": EXAMPLES["decay"]["power"], "other": EXAMPLES["decay"]["half_life"]}
    loop.train(build(config), tmp_path / str(group), progress=False)
    curves.append(losses(tmp_path / str(group)))
  np.testing.assert_allclose(curves[1], curves[0], rtol=1e-6)
  ranks = lambda ndims: {name: arrays["weight"] for name, arrays in ndims["net"].items()}
  assert ranks(packed[0])["conv1"] == 4 and set(ranks(packed[-1]).values()) == {1}
