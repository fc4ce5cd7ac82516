"""The one place where a Denoiser is made: what the network is given, and what is made of its F."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.precond import ECT, EDM, PRECONDS
from cm_jax.types import Condition, NoiseRange
from tests.compiling import quick_jit
from tests.golden.losses import toy_net, toy_params
from tests.golden_cases import BOTH_PRECISIONS, assert_golden, channels_first, channels_last, golden_case


def recording(seen):
  """Return a network that notes what it is told."""

  def net(params, x, c_noise, condition=None, *, key=None):
    seen.append((condition, key))
    return jnp.ones_like(x)

  return net


def test_a_key_is_what_switches_to_training():
  x, sigma, seen = jnp.ones((1, 1, 1, 1)), jnp.full(1, 0.002), []
  bound = Preconditioned(recording(seen), ECT(NoiseRange()))
  key, label = jax.random.key(0), jnp.array([3])
  assert bound({"net": None}, Condition(label))(x, sigma).item() == 1.0
  assert bound({"net": None}, Condition(augment_label=x), key)(x, sigma).item() > 1.0
  assert seen == [(Condition(label), None), (Condition(augment_label=x), key)]


def test_nothing_is_said_where_nothing_is_given():
  x, seen = jnp.ones((1, 1, 1, 1)), []
  bound = Preconditioned(recording(seen), EDM(NoiseRange()))
  bound({"net": None})(x, jnp.ones(1))
  bound.raw({"net": None}, x, jnp.ones(1))
  assert seen == [(Condition(), None)] * 2


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_the_network_is_told_the_second_time_as_an_angle(sigma_data):
  x, seen = jnp.ones((3, 1, 1, 1)), []
  bound = Preconditioned(recording(seen), EDM(NoiseRange(sigma_data=sigma_data)))
  s = jnp.array([0.0, sigma_data, 80.0])
  bound.flow_map({"net": None}, Condition(jnp.zeros(3, jnp.int32)))(x, jnp.full(3, 80.0), s)
  bound({"net": None}, Condition(until=s))(x, jnp.full(3, 80.0))
  bound.raw({"net": None}, x, jnp.ones(3), Condition(until=s))
  assert len(seen) == 3
  for condition, _ in seen:
    np.testing.assert_allclose(condition.until, np.arctan(np.array([0.0, 1.0, 80.0 / sigma_data])), rtol=1e-6)
  assert (seen[0][0].label == 0).all()


def test_the_derivative_reaches_the_second_time():
  net = lambda params, x, c_noise, condition, key=None: x * condition.until[:, None, None, None]
  g = Preconditioned(net, EDM(NoiseRange())).flow_map({"net": None})
  x, sigma, s = jnp.ones((2, 1, 1, 1)), jnp.ones(2), jnp.array([0.0, 0.5])
  value, slope = jax.jvp(lambda s: g(x, sigma, s), (s,), (jnp.ones(2),))
  # d arctan(s / 0.5)/ds = 0.5/(0.25 + s^2): finite at s = 0
  np.testing.assert_allclose(slope.ravel() / slope[0].item(), [1.0, 0.5], rtol=1e-5)
  assert bool(jnp.isfinite(value).all())


@pytest.mark.parametrize("name", sorted(PRECONDS))
def test_the_denoiser_is_f_scaled(x64, name):
  net = lambda params, x, c_noise, condition, key=None: params * jnp.sin(x) + c_noise[:, None, None, None]
  bound, params = Preconditioned(net, PRECONDS[name](NoiseRange())), {"net": 3.0}
  x, sigma = np.random.default_rng(0).normal(size=(2, 2, 2, 1)), np.array([0.01, 7.0])
  scalings, found = quick_jit(lambda x, sigma: (bound.precond(sigma), bound(params)(x, sigma)))(x, sigma)
  c_skip, c_out, c_in, c_noise = (np.asarray(c)[:, None, None, None] for c in scalings)
  want = c_skip * x + c_out * (3 * np.sin(c_in * x) + c_noise)
  np.testing.assert_allclose(found, want, rtol=1e-12)


@BOTH_PRECISIONS
def test_the_denoiser_is_ects(double):
  case = golden_case("E_ect_loss")
  bound = Preconditioned(toy_net(), ECT(NoiseRange(sigma_min=0.003)))
  with jax.enable_x64(double):
    x = 3 * channels_last(case.input("images"))[:4]
    for name, key in (("precond_train_D", jax.random.key(0)), ("precond_eval_D", None)):
      D = quick_jit(bound(toy_params(case), key=key))(x, jnp.array([0.003, 0.01, 1.0, 80.0]))
      assert_golden(case, name, channels_first(D))


def test_a_bfloat16_network_gives_a_float32_denoiser():
  net = lambda params, x, c_noise, condition, key=None: x.astype(jnp.bfloat16)
  bound = Preconditioned(net, EDM(NoiseRange()))
  assert bound({"net": None})(jnp.ones((1, 2, 2, 1)), jnp.ones(1)).dtype == jnp.float32


def test_the_channels_of_a_learned_variance_are_cut_off():
  net = lambda params, x, c_noise, condition, key=None: jnp.concatenate([x, 5 + x], axis=-1)
  plain = lambda params, x, c_noise, condition, key=None: x
  x, sigma = jnp.ones((2, 2, 2, 3)), jnp.ones(2)
  denoised = [Preconditioned(f, EDM(NoiseRange()))({"net": None})(x, sigma) for f in (net, plain)]
  assert (denoised[0] == denoised[1]).all()
