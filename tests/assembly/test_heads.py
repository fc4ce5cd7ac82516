"""The head of a loss is trained as its authors train it: EDM2's normalised after every update, sCM's free."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm_jax.assembly import assemble
from tests import tiny
from tests.compiling import quick_jit
from tests.examples import EXAMPLES


@pytest.mark.parametrize(
  ("objective", "network", "weight", "scale"),
  [
    # projected: rms 1 (audit B8)
    pytest.param(
      "denoising", "edm2", lambda head: head["logvar_linear"]["weight"], None, marks=pytest.mark.slow
    ),
    # sCM's w starts at 0 and is not normalised
    pytest.param("scm", "edm2", lambda head: head["weight"], 3.0, marks=pytest.mark.slow),
    ("denoising", "toy", lambda head: head["logvar_linear"]["weight"], 3.0),  # no forced normalisation here
  ],
)
def test_a_tripled_head_after_one_update(objective, network, weight, scale):
  config = tiny.config(EXAMPLES["objective"][objective])
  config.network = EXAMPLES["network"][network]
  config.precond = {"name": "edm"}
  method = assemble(config, (8, 8, 1), 0)
  head = jax.device_get(quick_jit(method.objective.needs.weighting)(jax.random.key(0)))
  tripled = jax.tree.map(lambda leaf: np.float32(3) * np.where(leaf == 0, np.float32(1), leaf), head)
  params = {"net": {"conv": {"weight": np.full((3, 3, 2, 4), 5, np.float32)}}, "weighting": tripled}

  @quick_jit
  def update(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = method.optimizer.update(zeros, method.optimizer.init(params), params, step=0, value=0.0)
    return optax.apply_updates(params, updates)

  after = jax.device_get(update(params))
  net = float(np.sqrt(np.square(after["net"]["conv"]["weight"]).mean()))
  assert net == pytest.approx(1.0 if network == "edm2" else 5.0, rel=1e-3)
  found = weight(after["weighting"])
  if scale is None:
    assert float(np.sqrt(np.square(found).mean())) == pytest.approx(1.0, rel=1e-3)
  else:
    np.testing.assert_allclose(found, weight(tripled), rtol=1e-6)
