"""The optimiser: every decay against its formula, the learning rate of every stage, the projection, and a
skipped step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cm_jax.assembly import call, construct
from cm_jax.diffusion.curriculum import doubling_scales, progressive_scales, target_decay
from cm_jax.errors import UserError
from cm_jax.networks import NETWORKS
from cm_jax.objectives.targets import Mu
from cm_jax.training.averages.decays import DECAYS, HalfLife, Power
from cm_jax.training.averages.posthoc import exponent
from cm_jax.training.averages.track import read_average, track_averages
from cm_jax.training.optim import NONFINITE, AdamW, Optimizer
from cm_jax.training.schedules import learning_rate
from tests.compiling import quick_jit
from tests.examples import EXAMPLES


def tracked(decay, params: np.ndarray, first_step: int = 0) -> np.ndarray:
  """Return the average after each update that makes the params params[1], params[2], ...; params[0] is where
  it starts."""
  average = track_averages({"ema": decay})

  def update(carry, step):
    state, now = carry
    change = jnp.asarray(params)[step - first_step + 1] - now
    _, state = average.update(change, state, now, step=step)
    return (state, now + change), state.averages["ema"]

  start = params[0]
  steps = first_step + np.arange(len(params) - 1)
  return np.asarray(
    quick_jit(lambda start, steps: jax.lax.scan(update, (average.init(start), start), steps)[1])(start, steps)
  )


def by_hand(mus, params: np.ndarray) -> np.ndarray:
  averages = [params[0]]
  for mu, value in zip(mus, params[1:], strict=True):
    averages.append(mu * averages[-1] + (1 - mu) * value)
  return np.array(averages[1:])


WALK = np.cumsum(np.random.default_rng(0).normal(size=201))
SCALES = progressive_scales(2, 20, 200)
CASES = {
  "none": (0.0, lambda k: 0.0),
  "constant": (0.9, lambda k: 0.9),
  # EDM: 0.5 to the power of the batch size over the half-life, which is at most 0.2 of the images seen.
  "half_life": (HalfLife(20.0, 0.2), lambda k: 0.5 ** (64 / max(min(20.0 * 64, 64 * k * 0.2), 1e-8))),
  "half_life_no_ramp": (HalfLife(20.0), lambda k: 0.5 ** (1 / 20)),
  "curriculum": (Mu(target_decay(SCALES, 2, 0.9)), lambda k: np.exp(2 * np.log(0.9) / float(SCALES(k)))),
  "curriculum_code": (
    Mu(target_decay(SCALES, 2, 0.9, "code")),
    lambda k: np.exp(2 * np.log(0.9) / (float(SCALES(k)) - 1)),
  ),
  "power": (Power(0.1), lambda k: (1 - 1 / (k + 1)) ** (float(exponent(0.1)) + 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_averages_follow_their_formula(name, x64):
  decay, formula = CASES[name]
  np.testing.assert_allclose(
    tracked(decay, WALK), by_hand([formula(k) for k in range(200)], WALK), rtol=1e-12
  )


@pytest.mark.parametrize("name", CASES)
def test_averages_follow_their_formula_in_float32(name):
  decay, formula = CASES[name]
  expected = by_hand([formula(k) for k in range(200)], WALK)
  np.testing.assert_allclose(tracked(decay, WALK.astype(np.float32)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(EXAMPLES["decay"]))
def test_a_decay_of_a_config_is_that_of_its_class(name):
  ours = construct(DECAYS, EXAMPLES["decay"][name], "config.averages.ema", batch_size=16)
  chex.assert_trees_all_close(tracked(ours, WALK[:20]), tracked(CASES[name][0], WALK[:20]))


@pytest.mark.slow
def test_the_power_average_weighs_the_past_by_a_power_function(x64):
  """The weights telescope: of the params after step j in the average at t, (j^(gamma+1) - (j-1)^(gamma+1)) /
  t^(gamma+1)."""
  t, gamma = 50, float(exponent(0.1))
  j = np.arange(1, t + 1)
  expected = (j ** (gamma + 1) - (j - 1.0) ** (gamma + 1)) / t ** (gamma + 1)
  weights = [tracked(Power(0.1), np.eye(t + 1)[i])[-1] for i in range(t + 1)]
  np.testing.assert_allclose(weights, [0, *expected], atol=1e-13)
  # its relative width is the one asked for, up to the 1/t of a discrete sum
  mean = (expected * j).sum()
  assert np.sqrt((expected * (j - mean) ** 2).sum()) / t == pytest.approx(0.1, abs=0.002)


def test_the_power_average_is_accurate_late_in_training():
  """mu = 0.99999 in float32 would leave two digits of 1 - mu."""
  for sigma_rel in (0.05, 0.1, 0.25):
    for k in (10**3, 10**5, 10**6, 10**7):
      gain = -np.expm1((float(exponent(sigma_rel)) + 1) * np.log1p(-1 / (k + 1)))
      assert tracked(Power(sigma_rel), np.array([0, 1], np.float32), first_step=k)[0] == pytest.approx(
        gain, rel=1e-6
      )


def test_mu_of_a_doubling_curriculum_has_one_value_a_stage():
  scales = doubling_scales(10, 1280, 800)
  values = [float(target_decay(scales, 10, 0.9)(k)) for k in (0, 99, 100, 799, 10**6)]
  np.testing.assert_allclose(values, [0.9 ** (10 / n) for n in (11, 11, 21, 1281, 1281)], rtol=1e-6)


@pytest.mark.parametrize(
  "section, message",
  [
    ({"name": "power", "sigma_rel": 0.3}, "sigma_rel = 0.3: expected a relative width between 0 and 0.289"),
    ({"name": "power", "sigma_rel": 0.0}, "sigma_rel = 0.0: expected a relative width between 0 and 0.289"),
    (
      {"name": "power", "sigma_rel": "wide"},
      "sigma_rel = wide: expected a relative width between 0 and 0.289",
    ),
    ({"name": "power"}, "config.averages.ema.sigma_rel = : expected set"),
    ({"name": "constant", "mu": 1.0}, "mu = 1.0: expected a number in [0, 1)"),
  ],
)
def test_bad_decays_are_refused(section, message):
  with pytest.raises(UserError) as caught:
    construct(DECAYS, section, "config.averages.ema")
  assert message in str(caught.value)


def test_learning_rates_without_stages_are_optax_ones():
  steps = np.arange(0, 60, 3)
  for decay, ours in (
    ("linear", optax.linear_schedule(2.0, 0.0, 40)),
    ("cosine", optax.cosine_decay_schedule(2.0, 40)),
  ):
    rate = learning_rate(2.0, 0, decay, 40)
    np.testing.assert_allclose([rate(k) for k in steps], [ours(k) for k in steps], atol=1e-6)


STAGES = (0, 50, 100, 200)  # the last stage ends at 200


@pytest.mark.parametrize(
  "arguments, table",
  [
    (
      ("linear", 0, 0),
      {0: 1, 25: 0.5, 49: 0.02, 50: 1, 75: 0.5, 99: 0.02, 100: 1, 150: 0.5, 199: 0.01, 200: 0, 900: 0},
    ),
    (("cosine", 0, 0), {0: 1, 25: 0.5, 50: 1, 75: 0.5, 100: 1, 150: 0.5, 200: 0}),
    (("linear", 20, 0), {0: 1, 10: 0.5, 20: 0, 49: 0, 50: 1, 60: 0.5, 100: 1, 119: 0.05, 120: 0}),
    (("constant", 0, 4), {0: 0.25, 3: 1, 49: 1, 50: 0.25, 51: 0.5, 99: 1, 100: 0.25, 199: 1, 500: 1}),
    (("linear", 0, 4), {0: 0.25, 3: 47 / 50, 50: 0.25, 53: 47 / 50, 100: 0.25, 103: 97 / 100}),
    (("inverse_sqrt", 4, 0), {0: 1, 4: 1, 16: 0.5, 50: 1, 66: 0.5, 100: 1, 164: 0.25}),
  ],
)
def test_the_learning_rate_begins_afresh_in_every_stage(arguments, table):
  decay, decay_steps, warmup_steps = arguments
  rate = jax.jit(learning_rate(2.0, warmup_steps, decay, decay_steps, STAGES))
  np.testing.assert_allclose([rate(k) for k in table], [2.0 * value for value in table.values()], atol=1e-6)
  assert rate._cache_size() == 1


def test_a_decay_needs_a_length():
  for stages, decay in (((), "linear"), ((), "cosine"), ((0, 10, 20), "inverse_sqrt")):
    with pytest.raises(UserError, match="decay_steps"):
      learning_rate(1.0, 0, decay, 0, stages)
  with pytest.raises(UserError, match="schedule = lineal: expected 'linear'"):
    learning_rate(1.0, 0, "lineal", 1)


def stepping(optimizer):
  """Return the compiled (init, step) of an optimiser, whose step gives the next params and state."""

  @quick_jit
  def step(params, state, grad, number, value):
    updates, state = optimizer.update(grad, state, params, step=number, value=value)
    return optax.apply_updates(params, updates), state

  return quick_jit(optimizer.init), step


def optimise(compiled, params, grads, values):
  """Return params and state after a step for each gradient."""
  init, step = compiled
  state, history = init(params), []
  for number, (grad, value) in enumerate(zip(grads, values, strict=True)):
    params, state = step(params, state, grad, np.int32(number), np.float32(value))
    history.append((params, state))
  return jax.device_get(history)


PARAMS = {
  "net": {"conv": {"weight": np.full((3, 3, 4, 8), 3.0, np.float32)}, "gain": np.float32(3.0)},
  "weighting": {"weight": np.full((4, 2), 3.0, np.float32)},
}


def gradients(count: int, seed: int = 0) -> list:
  rng = np.random.default_rng(seed)
  return [jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), PARAMS) for _ in range(count)]


def project(params):
  return {**params, "net": NETWORKS["edm2"].projection(params["net"])}


@pytest.mark.slow
def test_the_projection_holds_after_every_update_and_in_the_averages_only_where_asked():
  optimizer = Optimizer(learning_rate=0.1, rule=AdamW(), weight_decay=0.1, clip_norm=1.0)(
    {"ema": 0.0, "slow": 0.9}, project
  )
  free = Optimizer(learning_rate=0.1, rule=AdamW(), weight_decay=0.1, clip_norm=1.0)({"ema": 0.0})
  optimizer, free = stepping(optimizer), stepping(free)
  grads = gradients(3)
  first = optimise(optimizer, PARAMS, grads[:1], [1.0])[0][0]
  first_free = optimise(free, PARAMS, grads[:1], [1.0])[0][0]
  chex.assert_trees_all_close(first, project(first_free), rtol=1e-6)
  for params, state in optimise(optimizer, PARAMS, grads, [1.0] * 3):
    # the projection is one up to its 1e-4 in the divisor
    chex.assert_trees_all_close(params, project(params), rtol=2e-4)
    rms = jnp.sqrt(jnp.square(params["net"]["conv"]["weight"]).mean((0, 1, 2)))
    np.testing.assert_allclose(rms, 1.0, atol=2e-4)
    # mu = 0: the averages see projected params
    chex.assert_trees_all_close(read_average(state, "ema"), params, rtol=1e-6)
    # no weights of the network
    assert float(params["net"]["gain"]) > 2 and float(params["weighting"]["weight"].min()) > 2
  for params, _ in optimise(free, PARAMS, grads, [1.0] * 3):
    assert float(jnp.abs(params["net"]["conv"]["weight"]).min()) > 2


AVERAGES = {"constant": 0.9, "half_life": HalfLife(5.0), "power": Power(0.1)}


@functools.cache
def averaging(with_projection: bool):
  return stepping(Optimizer(learning_rate=0.1)(AVERAGES, project if with_projection else None))


@pytest.mark.parametrize("with_projection", [False, True])
@pytest.mark.parametrize("bad", ["gradient", "loss"])
def test_a_skipped_step_moves_neither_params_nor_averages_nor_moments(bad, with_projection):
  optimizer = averaging(with_projection)
  grads, values = gradients(3), [1.0, 1.0, 1.0]
  if bad == "gradient":
    grads[1] = jax.tree.map(lambda g: g * np.float32(np.nan), grads[1])
  else:
    values[1] = np.inf
  before, after, later = optimise(optimizer, PARAMS, grads, values)
  chex.assert_trees_all_equal(before[0], after[0])
  for name in AVERAGES:
    chex.assert_trees_all_equal(read_average(before[1], name), read_average(after[1], name))
    assert not np.array_equal(
      read_average(later[1], name)["net"]["gain"], read_average(after[1], name)["net"]["gain"]
    )
  assert int(optax.tree.get(after[1], "total_notfinite")) == 1
  # the learning rate and mu(k) went on: the third update is that of step 2, as it is without the step that
  # was skipped
  mu = float(Power(0.1)(2))
  expected = jax.tree.map(lambda e, p: mu * e + (1 - mu) * p, read_average(after[1], "power"), later[0])
  chex.assert_trees_all_close(read_average(later[1], "power"), expected, rtol=1e-5)


def test_stages_come_from_the_objective_never_from_the_config():
  assert call(Optimizer, {"schedule": "linear"}, "config.optimizer", stages=STAGES).rate()(
    75
  ) == pytest.approx(0.5e-3)
  with pytest.raises(UserError, match="config.optimizer.stages"):
    call(Optimizer, {"stages": STAGES}, "config.optimizer", stages=())


@pytest.mark.parametrize(("name", "infinite"), [("zero", 1e5), ("zero_inf", 0.0)])
def test_the_peers_nan_to_zero(name, infinite):
  """EDM's takes infinite gradients for 1e5, EDM2's and ECT's on ImageNet for 0 (audit B9)."""
  clean = NONFINITE[name]()
  dirty = {"a": jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.25])}
  updates, _ = clean.update(dirty, clean.init(dirty), dirty, step=0, value=jnp.nan)
  np.testing.assert_allclose(updates["a"], [0.0, infinite, -infinite, 0.25])
  optimizer, params = Optimizer(learning_rate=0.5, nonfinite=name)({}), {"a": jnp.zeros(4)}
  updates, _ = optimizer.update(dirty, optimizer.init(params), params, step=0, value=jnp.nan)
  np.testing.assert_allclose(updates["a"], [0.0, *(-0.5 * np.sign([infinite, -infinite])), -0.5], atol=1e-5)
  with pytest.raises(UserError, match=r"nonfinite = zeros: expected 'zero'"):
    Optimizer(nonfinite="zeros")
