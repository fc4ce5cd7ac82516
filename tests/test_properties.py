"""What every entry of every registry has to do. A new entry is tested from the moment it is registered.

An entry is made from its section in `tests/examples.py`, as a config would make it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.drifts import monte_carlo_drift
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.precond import EDM, Boundary
from cm_jax.diffusion.solvers import SOLVERS
from cm_jax.diffusion.weights import WEIGHTS
from cm_jax.networks import as_net
from cm_jax.networks.toy import ToyNet
from cm_jax.training.optim import OPTIMIZERS, Optimizer
from cm_jax.training.schedules import SCHEDULES
from cm_jax.types import Condition, Context, NoiseRange
from tests.compiling import quick_jit
from tests.examples import EXAMPLES, REGISTRIES, entry, make

NOISE, BATCH, SHAPE = NoiseRange(), 6, (4, 4, 2)


def every(kind):
  return pytest.mark.parametrize("name", sorted(EXAMPLES[kind]))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_entry_has_an_example(kind):
  assert {entry(name) for name in EXAMPLES[kind]} == set(REGISTRIES[kind]), f"see EXAMPLES[{kind!r}]"


def images(seed: int, batch: int = BATCH) -> np.ndarray:
  return np.random.default_rng(seed).uniform(-1, 1, size=(batch, *SHAPE)).astype(np.float32)


def assert_batch(values, batch: int = BATCH, positive: bool = True):
  """One float32 number an example, finite, and above 0 if it is to be."""
  values = np.asarray(values)
  assert values.shape == (batch,) and values.dtype == np.float32
  assert np.isfinite(values).all() and (not positive or (values > 0).all())


@every("curriculum")
def test_a_curriculum_is_its_values(name):
  curriculum = make("curriculum", name)
  assert (
    curriculum.starts[0] == 0
    and (np.diff(curriculum.starts) > 0).all()
    and len(curriculum.starts) == len(curriculum.values)
  )
  got = quick_jit(jax.vmap(curriculum))(np.array(curriculum.starts))
  assert got.dtype in (jnp.int32, jnp.float32)
  np.testing.assert_allclose(got, curriculum.values, rtol=1e-6)


@every("levels")
def test_levels_are_positive_and_follow_the_key(name):
  levels = make("levels", name)
  draw = quick_jit(lambda key: levels(key, 500))
  sigma, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (0, 0, 1))
  assert_batch(sigma, 500)
  assert (sigma == again).all() and not (sigma == other).all()
  ends = np.asarray(quick_jit(levels.at)(np.array([0.1, 0.9], np.float32)))
  assert_batch(ends, 2)
  assert float(ends[0]) != float(ends[1])


@every("pairs")
def test_pairs_are_ordered_levels_that_follow_the_key(name):
  pairs = make("pairs", name)
  draw = quick_jit(lambda key, step: (pairs(key, 500, step), pairs.metrics(step)))
  (t, r), metrics = jax.device_get(draw(jax.random.key(0), 0))
  assert_batch(t, 500)
  assert_batch(r, 500, positive=False)
  assert (t > r).all() and (r >= 0).all()
  assert all(jnp.shape(value) == () and np.isfinite(value) for value in metrics.values())
  (again, _), _ = jax.device_get(draw(jax.random.key(0), 0))
  (other, _), _ = jax.device_get(draw(jax.random.key(1), 0))
  assert (again == t).all() and not (other == t).all()


@every("distance")
def test_a_distance_is_one_and_says_so_per_example(name):
  distance = make("distance", name)
  a, b = images(0), images(1)
  both = quick_jit(jax.value_and_grad(lambda a, b: distance(a, b).sum(), argnums=(0, 1)))
  each = quick_jit(distance)
  values = np.asarray(each(a, b))
  assert_batch(values)
  np.testing.assert_allclose(each(b, a), values, rtol=1e-6)
  np.testing.assert_allclose(each(a[::-1], b[::-1]), values[::-1], rtol=1e-6)
  assert np.abs(each(a, a)).max() < 1e-8
  for left, right in ((a, b), (a, a), (np.concatenate([a[:3], b[3:]]), b)):
    _, grads = jax.device_get(both(left, right))
    assert all(np.isfinite(grad).all() and grad.dtype == np.float32 for grad in grads)
    assert (grads[0][(left == right).all((1, 2, 3))] == 0).all()


@every("weight")
def test_a_weight_is_positive_at_every_pair(name):
  t = np.array([0.0021, 0.01, 0.5, 2.0, 79.0, 80.0], np.float32)
  values = quick_jit(lambda t, r: WEIGHTS[name](t, r, 0.5))(t, t * np.float32(0.9))
  assert_batch(values)


@every("solver")
def test_a_solver_follows_straight_lines_and_stands_still_without_a_drift(name):
  x, z = images(0), images(1)
  t, r = np.array([[0.01, 0.5, 1.0, 3.0, 80.0, 80.0], [0.002, 0.5, 0.0, 2.0, 70.0, 0.0]], np.float32)
  step = quick_jit(lambda x, z, t, r: SOLVERS[name](monte_carlo_drift(x), x + append_dims(t, x) * z, t, r))
  got = step(x, z, t, r)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, x + r[:, None, None, None] * z, atol=2e-4)
  still = quick_jit(lambda x, t, r: SOLVERS[name](lambda x, sigma: jnp.zeros_like(x), x, t, r))
  np.testing.assert_array_equal(still(x, t, r), x)


@every("precond")
@pytest.mark.parametrize("train", [False, True])
def test_scalings_are_finite_float32_numbers_at_every_level(name, train):
  sigma = np.array([0.002, 0.0021, 0.05, 0.5, 10.0, 80.0], np.float32)
  scalings = quick_jit(lambda sigma: make("precond", name)(sigma, train=train))(sigma)
  for values in scalings:
    assert_batch(values, positive=False)
  assert_batch(scalings.c_in)


@every("target")
def test_a_targets_decay_is_none_or_below_one(name):
  decay = make("target", name).decay(constant(8))
  assert decay is None or all(0 <= float(decay(jnp.array(k))) < 1 for k in (0, 10, 10**6))


@every("sampler")
def test_a_sampler_makes_each_image_from_its_own_noise(name):
  sampler = make("sampler", name)

  def denoiser(x, sigma):
    assert x.dtype == sigma.dtype == jnp.float32 and sigma.shape == x.shape[:1]
    jax.debug.callback(lambda: calls.append(1))
    return jnp.tanh(x)

  calls = []
  run = quick_jit(lambda noise: sampler(denoiser, lambda k, shape: noise[k], noise.shape[1:]))
  noise = np.random.default_rng(4).normal(size=(2, 12, BATCH, *SHAPE)).astype(np.float32)
  got = np.asarray(run(noise[0]))
  jax.effects_barrier()
  assert len(calls) == sampler.nfe
  assert got.shape == (BATCH, *SHAPE) and got.dtype == np.float32 and np.isfinite(got).all()
  few, other = jax.device_get([run(draws[:, :2]) for draws in noise])
  np.testing.assert_allclose(few, got[:2], atol=1e-6)
  assert not (other == few).all()
  assert (np.diff(sampler.sigmas) < 0).all() and all(
    isinstance(s, float) and NOISE.sigma_min <= s <= NOISE.sigma_max for s in sampler.sigmas
  )


def network(dtype: str = "float32", dropout: float = 0.0):
  return ToyNet(
    img_resolution=SHAPE[0],
    in_channels=SHAPE[2],
    out_channels=SHAPE[2],
    label_dim=3,
    dropout=dropout,
    dtype=dtype,
  )


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(
    lambda: network().init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1))["params"]
  )
  rng = np.random.default_rng(0)
  draw = lambda: {
    "net": jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
  }
  return {name: draw() for name in ("student", "target", "teacher")}


def context(objective, params, dtype: str = "float32", dropout: float = 0.0) -> Context:
  net, precond = as_net(network(dtype, dropout)), EDM if objective.needs.trigflow else Boundary
  return Context(
    Preconditioned(net, precond(NOISE)), Preconditioned(net, EDM(NOISE)), params["target"], params["teacher"]
  )


def trained(objective, params):
  """The student's params with the head of the objective's loss, off its initial value of 0."""
  if objective.needs.weighting is None:
    return params["student"]
  head = jax.tree.map(
    lambda leaf: np.asarray(leaf) + np.float32(0.1),
    quick_jit(objective.needs.weighting)(jax.random.key(0)),
  )
  return {**params["student"], "weighting": head}


KINDS = ("diffusion", "consistency", "flow_map")
STATE_METRICS = ("num_scales", "stage", "target_decay")
FROZEN = ("freqs", "phases")  # of a head's Fourier features: stored with the weights, not trained


def learned(tree):
  return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key not in FROZEN]


BATCHES = {"image": images(0), "label": np.array([0, 1, 2, -1, 1, 0], np.int32)}


@functools.cache
def drawing(name):
  """Return the compiled draw(key) of an example, one for all tests."""
  return quick_jit(lambda key: make("objective", name).draw(key, BATCHES, jnp.array(3)))


def draw(name, seed: int):
  return drawing(name)(jax.random.key(seed))


def plain(tree):
  return [
    np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
    for leaf in jax.tree.leaves(tree)
  ]


@every("objective")
def test_the_draws_of_an_objective_follow_the_key(name):
  first, again, other = (plain(draw(name, seed)) for seed in (0, 0, 1))
  assert all((a == b).all() for a, b in zip(first, again, strict=True))
  assert all((a != b).any() for a, b in zip(first, other, strict=True))


@every("objective")
def test_an_objective_is_the_mean_of_what_it_says_per_example(name, params):
  """Finite and float32, also with a bfloat16 network (invariant 9); an example's loss is its own; only the
  student learns."""
  objective = make("objective", name)
  draws, order = draw(name, 0), np.array([3, 1, 0, 5, 4, 2])
  student = trained(objective, params)

  @quick_jit
  def run(batch, draws):
    def loss(student, others):
      output = objective.loss(student, context(objective, params | others), batch, draws, jnp.array(3))
      return output.loss, output

    others = {"target": params["target"], "teacher": params["teacher"]}
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(student, others)

  ((loss, output), (grads, frozen)) = jax.device_get(run(BATCHES, draws))
  assert_batch(output.per_example, positive=False)
  assert_batch(output.noise_level)
  assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(
    float(output.per_example.mean()), rel=1e-5
  )
  assert all(jnp.shape(value) == () and np.isfinite(value) for value in output.metrics.values())
  assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  assert all((leaf != 0).any() for leaf in learned(grads))
  assert all(leaf.shape == (BATCH,) and np.isfinite(leaf).all() for leaf in output.by_level.values())
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(frozen))

  permute = lambda leaf: leaf[order] if leaf.shape[:1] == (BATCH,) else leaf
  (_, shuffled), _ = run(jax.tree.map(permute, BATCHES), jax.tree.map(permute, draws))
  np.testing.assert_allclose(shuffled.per_example, output.per_example[order], rtol=1e-4)
  (_, other), _ = run(BATCHES, draw(name, 1))
  assert not (np.asarray(other.per_example) == output.per_example).any()

  narrow = quick_jit(
    lambda: objective.loss(student, context(objective, params, "bfloat16"), BATCHES, draws, jnp.array(3))
  )()
  assert_batch(narrow.per_example, positive=False)
  np.testing.assert_allclose(
    narrow.per_example, output.per_example, rtol=0.3, atol=0.05 * float(np.abs(output.per_example).max())
  )


@every("objective")
def test_calling_an_objective_is_drawing_and_then_the_loss(name, params):
  """As programs; that other draws are another loss is a test of the loss."""
  objective, key = make("objective", name), jax.random.key(5)
  student, given = trained(objective, params), context(objective, params, dropout=0.5)
  whole = lambda key: objective(student, given, BATCHES, key, jnp.array(3)).per_example
  halves = lambda key: (
    objective.loss(
      student, given, BATCHES, objective.draw(key, BATCHES, jnp.array(3)), jnp.array(3)
    ).per_example
  )
  assert str(jax.make_jaxpr(whole)(key)) == str(jax.make_jaxpr(halves)(key))
  assert isinstance(objective.needs.teacher, bool)
  assert objective.needs.target_decay is None or callable(objective.needs.target_decay)
  assert objective.trains in KINDS and set(objective.progress(3)) <= set(STATE_METRICS)


@every("drift")
def test_a_drift_asks_the_teacher_or_the_data_and_nobody_else(name):
  drift, x, sigma = make("drift", name), images(0), np.full(BATCH, 2.0, np.float32)
  asked = []

  def teacher(params, condition=Condition(), key=None):  # noqa: B008
    asked.append((params, condition, key))
    return lambda x, sigma: 0.5 * x

  told = Condition(np.zeros(BATCH, np.int32))
  context = Context(None, teacher, teacher_params="phi")
  got = quick_jit(drift(context, {"image": images(1)}, told))(x, sigma)
  want = 0.5 * x if drift.needs_teacher else x - images(1)
  np.testing.assert_allclose(got, want / 2, rtol=1e-6, atol=1e-6)
  assert asked == ([("phi", told, None)] if drift.needs_teacher else [])


@every("decay")
def test_a_decay_is_below_one_and_its_gain_what_is_left(name):
  decay = make("decay", name)
  both = quick_jit(lambda k: (decay(k), decay.gain(k)))
  for k in (0, 1, 10, 1000):
    mu, gain = map(float, both(k))
    assert 0 <= mu < 1 and gain == pytest.approx(1 - mu, rel=1e-4)


@every("optimizer")
def test_an_optimiser_steps_from_abstract_shapes_and_keeps_them(name):
  """Init without values (eval_shape), and an update that changes no shape, type or structure of the state."""
  rule = OPTIMIZERS[name]()
  optimizer = Optimizer(rule, learning_rate=0.1)({"ema": 0.9})
  params = {"net": {"w": np.ones((4, 3), np.float32), "b": np.zeros(3, np.float32)}}
  shapes = jax.eval_shape(
    optimizer.init, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
  )
  state = quick_jit(optimizer.init)(params)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
    lambda s: (s.shape, s.dtype), shapes
  )
  grads = jax.tree.map(np.ones_like, params)
  update = quick_jit(lambda *given: optimizer.update(*given, step=jnp.array(0), value=jnp.array(1.0)))
  updates, after = update(grads, state, params)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
    lambda s: (s.shape, s.dtype), shapes
  )
  assert all((np.asarray(change) < 0).all() for change in jax.tree.leaves(updates))


@every("optimizer")
def test_an_update_keeps_the_sharding_of_the_state(name):
  mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  optimizer = Optimizer(OPTIMIZERS[name](), learning_rate=0.1)({"ema": 0.9})
  params = jax.device_put({"w": jnp.ones((4, 3))}, split)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  places = jax.tree.map(
    lambda leaf: split if leaf.ndim == 2 else whole, jax.eval_shape(optimizer.init, params)
  )
  state = quick_jit(optimizer.init, out_shardings=places)(params)
  update = quick_jit(
    lambda state: optimizer.update(params, state, params, step=jnp.array(0), value=jnp.array(1.0))[1]
  )
  large = lambda tree: [leaf.sharding.spec for leaf in jax.tree.leaves(tree) if leaf.ndim == 2]
  assert large(update(state)) == large(state) == [split.spec] * 3


@every("schedule")
def test_a_schedule_starts_at_the_peak_and_ends_at_zero_where_it_says_so(name):
  shape = SCHEDULES[name]
  compiled = quick_jit(shape.factor)
  factor = lambda k: float(compiled(np.float32(k), np.float32(100)))
  assert factor(0) == pytest.approx(1)
  assert all(0 <= factor(k) <= 1 for k in (1, 50, 99, 100, 1000))
  assert (factor(100) < 1e-6) == shape.to_zero
