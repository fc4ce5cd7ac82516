"""The slot for a second time: every network of `NETWORKS`, one example each, starts from a one-time model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.errors import UserError
from cm_jax.networks import as_net, init_params
from tests.networks.small import (
  BATCH,
  SHAPE,
  evaluation,
  every_network,
  every_network_in_turn,
  far,
  inputs,
  jit,
  make,
  random_params,
  shapes_of,
  split,
)


@functools.cache
def two_times(name):
  """Return the jitted (params, until, direction) -> (F, its slope in until, gradient of the new layer)."""
  net, (x, c_noise, condition) = as_net(make(name, second_time=True)), inputs(name)

  @jit
  def probe(params, until, direction):
    before, added = split(params)
    f = lambda added, until: net({**before, **added}, x, c_noise, condition._replace(until=until))
    y, slope = jax.jvp(functools.partial(f, added), (until,), (direction,))
    return y, slope, jax.grad(lambda added: jnp.square(f(added, until)).sum())(added)

  return probe


def upgraded(name):
  """Return random params of one time and the initial new layer: a checkpoint that learns a second time."""
  module = make(name, second_time=True)
  layer = jit(lambda: split(init_params(module, jax.random.key(0), SHAPE))[1])()
  return {**random_params(make(name)), **layer}


@every_network
def test_a_second_time_adds_one_layer_and_draws_all_else_as_before(name):
  """By the programs that draw them, which need not run; a slow test of test_networks compares values."""
  plain, both = (functools.partial(init_params, make(name, second_time=two)) for two in (False, True))
  key = jax.random.key(0)
  before, added = split(shapes_of(make(name, second_time=True)))
  assert before == shapes_of(make(name)) and not split(before)[1]
  assert len(added) in (1, 2) and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(added))
  drawn = lambda init: origins(jax.make_jaxpr(lambda key: split(init(key, SHAPE))[0])(key))
  assert drawn(plain) == drawn(both) and len(set(drawn(plain))) > 1


def origins(program):
  """Return for each output of a program a number that says how it is computed, whatever else is."""
  known = {var: i for i, var in enumerate(program.jaxpr.invars)}
  known |= {
    v: hash(np.asarray(c).tobytes()) for v, c in zip(program.jaxpr.constvars, program.consts, strict=True)
  }
  origin = lambda atom: str(atom) if hasattr(atom, "val") else known[atom]
  for eqn in program.jaxpr.eqns:
    made = hash((eqn.primitive.name, str(eqn.params), *map(origin, eqn.invars)))
    known |= {var: hash((made, i)) for i, var in enumerate(eqn.outvars)}
  return [origin(atom) for atom in program.jaxpr.outvars]


@every_network
def test_without_a_second_time_one_is_refused(name):
  modules = [make(name)] + ([make(name, conditional=False)] if name == "jcm_ncsnpp" else [])
  x, c_noise, condition = inputs(name)
  for module in modules:
    with pytest.raises(UserError, match="^second_time = False: expected True to condition on a second time"):
      until = condition._replace(until=jnp.zeros(BATCH))
      jax.eval_shape(as_net(module), shapes_of(module), x, c_noise, until)


@every_network_in_turn
def test_a_network_of_one_time_is_one_of_two_for_which_the_second_does_not_matter(name):
  params, y = upgraded(name), evaluation(name)(*inputs(name))
  for until in (np.zeros(BATCH, np.float32), np.array([0.01, 0.8, 1.57], np.float32)):
    F, slope, gradient = two_times(name)(params, until, np.ones(BATCH, np.float32))
    np.testing.assert_allclose(F, y, atol=1e-6 * float(np.abs(y).max()))
    assert not np.any(slope)
    # but it will be learned
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4


@every_network_in_turn
def test_a_second_time_matters_once_it_is_learned(name):
  params, probe = random_params(make(name, second_time=True)), two_times(name)
  until, other = jnp.array([0.01, 0.8, 1.5]), jnp.array([0.6, 0.1, 1.2])
  direction, h = jnp.array([1.0, -0.5, 2.0]), 1e-2
  y, slope, _ = probe(params, until, direction)
  moved = probe(params, other, direction)[0]
  assert all(far(a, b) > 1e-4 for a, b in zip(y, moved, strict=True))  # to each example its own
  ends = [probe(params, until + sign * h * direction, direction)[0] for sign in (1, -1)]
  assert y.dtype == slope.dtype == jnp.float32 and far(slope, jnp.zeros_like(slope)) > 1e-4
  np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), atol=2e-2 * float(jnp.abs(slope).max()))


def test_no_second_time_is_the_clean_end():
  net, (x, c_noise, condition) = as_net(make("toy", second_time=True)), inputs("toy")
  params = random_params(make("toy", second_time=True))
  at = jit(lambda until: net(params, x, c_noise, condition._replace(until=until)))
  none, end, other = at(None), at(np.zeros(BATCH, np.float32)), at(np.ones(BATCH, np.float32))
  assert far(none, end) < 1e-6 and far(none, other) > 1e-4


@every_network
def test_a_second_time_leaves_bfloat16_inside(name):
  module, (x, c_noise, condition) = make(name, dtype="bfloat16", second_time=True), inputs(name)
  net = lambda params, until: as_net(module)(params, x, c_noise, condition._replace(until=until))
  params = shapes_of(module)
  assert jax.eval_shape(net, params, jnp.zeros(BATCH)).dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
