"""Every network with every objective: shapes and types abstractly, and numbers with the objective that
differentiates the most."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.networks import NETWORKS, as_net
from cm_jax.objectives.scm import Scm
from cm_jax.types import Context, NoiseRange
from tests.compiling import quick_jit
from tests.examples import EXAMPLES
from tests.examples import make as make_entry
from tests.networks.test_networks import BATCH, SHAPE, UNLABELLED, make, random_params

NOISE = NoiseRange()
STEP = np.int32(3)


def gradient_of(objective, network):
  """Return (value_and_grad of the loss as a function of params, params)."""
  net, precond = as_net(make(network)), EDM if objective.needs.trigflow else Boundary
  params = {"net": random_params(make(network))}
  if objective.needs.weighting is not None:
    params["weighting"] = objective.needs.weighting(jax.random.key(1))
  context = Context(Preconditioned(net, precond(NOISE)), Preconditioned(net, EDM(NOISE)), params, params)
  batch = {"image": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (BATCH, *SHAPE)), jnp.float32)}
  if network not in UNLABELLED:
    batch["label"] = jnp.array([0, -1, 3])

  def loss(params):
    output = objective(params, context, batch, jax.random.key(0), STEP)
    return output.loss, output

  return jax.value_and_grad(loss, has_aux=True), params


def pairs():
  """Every objective with every network; each of both once in the quick suite."""
  objectives, networks = list(EXAMPLES["objective"]), list(NETWORKS)
  for i, objective in enumerate(objectives):
    for j, network in enumerate(networks):
      is_quick = (i - j) % max(len(objectives), len(networks)) == 0
      yield pytest.param(objective, network, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("objective", "network"), list(pairs()))
def test_every_objective_takes_every_network(objective, network):
  function, params = gradient_of(make_entry("objective", objective), network)
  (loss, output), grads = jax.eval_shape(function, params)
  assert loss.shape == () and output.per_example.shape == output.noise_level.shape == (BATCH,)
  leaves = [loss, output.per_example, *output.metrics.values(), *jax.tree.leaves(grads)]
  assert all(leaf.dtype == jnp.float32 for leaf in leaves if leaf.dtype != jnp.int32)
  assert jax.tree.structure(grads) == jax.tree.structure(params)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_learns_by_a_forward_and_a_reverse_derivative(network):
  function, params = gradient_of(Scm(NOISE, DRIFTS["monte_carlo"]()), network)
  (loss, _), grads = quick_jit(function)(params)
  assert bool(jnp.isfinite(loss)) and all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
  assert sum(bool((leaf != 0).any()) for leaf in jax.tree.leaves(grads["net"])) > 0.7 * len(
    jax.tree.leaves(grads["net"])
  )
