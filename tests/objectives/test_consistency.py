import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import doubling_scales, progressive_scales, stages
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.distances import L2, PseudoHuber
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import ContinuousPairs, KarrasPairs, LognormalPairs
from cm_jax.diffusion.precond import ECT, EDM, Boundary
from cm_jax.diffusion.solvers import SOLVERS, euler, heun
from cm_jax.diffusion.weights import inverse_gap, uniform
from cm_jax.errors import UserError
from cm_jax.networks import as_net, init_params
from cm_jax.networks.toy import ToyNet
from cm_jax.objectives.consistency import Consistency, ConsistencyDraws
from cm_jax.objectives.targets import CurriculumEma, Ema, StopGradient
from cm_jax.types import Condition, Context, NoiseRange
from tests.compiling import quick_jit

NOISE = NoiseRange()
SG = StopGradient()
SCALES = progressive_scales(2, 20, 200)
TOY = ToyNet(img_resolution=4, in_channels=1, out_channels=1, label_dim=3, augment_dim=2, dropout=0.5)


@pytest.fixture(scope="module")
def params():
  """Return params of the toy network for the student, the target and the teacher."""
  init = quick_jit(lambda key: {"net": init_params(TOY, key, (4, 4, 1))})
  return [init(jax.random.key(seed)) for seed in range(3)]


@pytest.fixture
def batch():
  x = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4, 1)).astype(np.float32)
  label, augment_label = np.array([0, 1, 2, -1, 0, 1], np.int32), np.ones((6, 2), np.float32)
  return {"image": x, "label": label, "augment_label": augment_label}


def objective(drift: str = "monte_carlo", solver=euler, target=SG, pairs=None) -> Consistency:
  return Consistency(
    NOISE, pairs or KarrasPairs(NOISE, SCALES), DRIFTS[drift](), solver, L2(), uniform, target
  )


def drawn(loss: Consistency, batch, seed: int = 1, step: int = 150) -> ConsistencyDraws:
  return quick_jit(lambda key: loss.draw(key, batch, jnp.array(step)))(jax.random.key(seed))


NORMAL = np.random.default_rng(5).normal(size=(6, 4, 4, 1)).astype(np.float32)


@dataclasses.dataclass
class Recorder:
  """A fake `Preconditioned` that writes down what it is bound with, and what it is asked."""

  calls: list
  who: str

  def __call__(self, params, condition=Condition(), key=None):  # noqa: B008
    def denoise(x, sigma):
      told = {"label": condition.label, "augment_label": condition.augment_label, "key": key}
      self.calls.append({"who": self.who, "params": params, **told, "x": x, "sigma": sigma})
      return params * x

    return denoise


@pytest.mark.slow
@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("target", [SG, Ema(0.9)])
def test_who_is_asked_what(batch, drift, solver, target):
  """Invariant 2: student and target get the same dropout key, the teacher none; t and x_t go to the student,
  r and x_r to the target."""
  calls = []
  theta, theta_minus, phi = jnp.array(0.5), jnp.array(0.25), jnp.array(0.125)
  context = Context(
    Recorder(calls, "student"), Recorder(calls, "teacher"), None if target == SG else theta_minus, phi
  )
  loss = objective(drift, solver, target)
  draws = loss.draw(jax.random.key(1), batch, jnp.array(150))
  loss.loss(theta, context, batch, draws, jnp.array(150))

  teacher, students = ([call for call in calls if call["who"] == who] for who in ("teacher", "student"))
  assert len(teacher) == {"monte_carlo": 0, "teacher": 1 + (solver is heun)}[drift]
  for call in teacher:
    assert call["key"] is None and call["label"] is batch["label"] and float(call["params"]) == float(phi)

  (at_r, at_t) = sorted(students, key=lambda call: float(call["sigma"].sum()))
  for call in (at_r, at_t):
    assert (jax.random.key_data(call["key"]) == jax.random.key_data(draws.key)).all()
    assert call["label"] is batch["label"] and call["augment_label"] is batch["augment_label"]
  assert float(at_t["params"]) == float(theta)
  assert float(at_r["params"]) == float(theta if target == SG else theta_minus)
  assert (at_t["sigma"] == draws.t).all() and (at_r["sigma"] == draws.r).all()
  np.testing.assert_allclose(at_t["x"], batch["image"] + append_dims(draws.t, draws.z) * draws.z, rtol=1e-6)
  if drift == "monte_carlo":
    np.testing.assert_allclose(at_r["x"], batch["image"] + append_dims(draws.r, draws.z) * draws.z, atol=1e-4)


@pytest.mark.parametrize(("drift", "solver"), [("monte_carlo", euler), ("teacher", heun)])
@pytest.mark.parametrize("target", [SG, Ema(0.9)], ids=["stop_gradient", "ema"])
def test_the_gradient_reaches_the_student_only(params, batch, drift, solver, target):
  """Invariant 2, with a network: exactly 0 for theta- and the teacher, and of theta the same as if theta-
  were another's params."""
  loss, bound = objective(drift, solver, target), Preconditioned(as_net(TOY), Boundary(NOISE))
  step, draws = jnp.array(150), drawn(loss, batch)

  @quick_jit
  @jax.grad
  def gradient(everything):
    theta, theta_minus, phi = everything
    return loss.loss(
      theta, Context(bound, Preconditioned(as_net(TOY), EDM(NOISE)), theta_minus, phi), batch, draws, step
    ).loss

  own, theirs, teachers = jax.device_get(gradient(tuple(params)))
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own))
  assert all((leaf == 0).all() for leaf in jax.tree.leaves((theirs, teachers)))
  if target == SG:
    itself = gradient((params[0], None, params[2]))[0]
    copied = gradient((params[0], params[0], params[2]))[0]
    jax.tree.map(np.testing.assert_array_equal, itself, copied)


@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("drift", DRIFTS)
def test_nobody_is_asked_at_noise_level_zero(batch, drift, solver):
  """There c_noise is -inf; its nan would be masked, but `jax_debug_nans` would stop at it."""
  calls = []
  t = np.array([0.1, 0.5, 1.0, 2.0, 10.0, 80.0], np.float32)
  r = np.where(t > 1, t / 2, np.float32(0))
  draws = ConsistencyDraws(t, r, np.ones((6, 4, 4, 1), np.float32), jax.random.key(0))
  context = Context(Recorder(calls, "student"), Recorder(calls, "teacher"), teacher_params=0.5)
  out = objective(drift, solver).loss(0.5, context, batch, draws, jnp.array(0))
  assert calls and all(bool((call["sigma"] > 0).all()) for call in calls)
  assert bool(jnp.isfinite(out.per_example).all())


def test_student_and_target_drop_the_same_units(params, batch):
  """With equal params, nearly equal noise levels and half of the units dropped, the two outputs are nearly
  equal."""
  bound = Preconditioned(as_net(TOY), EDM(NOISE))
  t = np.full(6, 0.5, np.float32)
  draws = ConsistencyDraws(t, t * np.float32(1 - 1e-5), NORMAL, jax.random.key(7))
  loss = quick_jit(lambda draws: objective().loss(params[0], Context(bound), batch, draws, jnp.array(0)).loss)
  other_mask, x_t = jax.random.key(8), batch["image"] + 0.5 * draws.z
  evaluate = quick_jit(lambda key: bound(params[0], Condition.of(batch), key)(x_t, t))
  between_masks = float(np.square(np.subtract(*map(evaluate, (draws.key, other_mask)))).mean())
  assert between_masks > 1e-3
  assert float(loss(draws)) < 1e-6 * between_masks


def test_where_r_is_zero_the_target_is_the_clean_image_and_the_gradient_finite(params, batch):
  pairs = ContinuousPairs(stages(100, 4), q=2.0)
  loss = dataclasses.replace(objective(pairs=pairs), distance=PseudoHuber(0.0), weight=inverse_gap)
  bound = Preconditioned(as_net(TOY), ECT(NOISE))
  t = np.array([1e-4, 0.1, 1.9, 2.0, 10.0, 80.0], np.float32)
  r = np.asarray(quick_jit(lambda t: pairs.target_time(t, 0))(t))
  assert (r == 0).tolist() == [True, True, True, False, False, False]
  draws = ConsistencyDraws(t, r, NORMAL, jax.random.key(7))
  x_t = batch["image"] + t[:, None, None, None] * NORMAL

  @quick_jit
  def value_and_grad(params):
    objective_of = lambda params: loss.loss(params, Context(bound), batch, draws, jnp.array(0))
    f = bound(params, Condition.of(batch), draws.key)(x_t, t)
    return objective_of(params).per_example, jax.grad(lambda params: objective_of(params).loss)(params), f

  per_example, grads, f = jax.device_get(value_and_grad(params[0]))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  want = np.sqrt(np.square(f - batch["image"]).sum((1, 2, 3))) / t
  np.testing.assert_allclose(per_example[:3], want[:3], rtol=1e-4)
  assert (np.abs(per_example[3:] / want[3:] - 1) > 1e-3).all()


@pytest.mark.parametrize(
  "pairs",
  [
    KarrasPairs(NOISE, progressive_scales(2, 20, 200)),
    LognormalPairs(NOISE, doubling_scales(10, 160, 200)),
    ContinuousPairs(stages(50, 4)),
  ],
  ids=["progressive", "doubling", "stages"],
)
def test_the_whole_curriculum_is_one_trace(params, batch, pairs):
  """Invariant 6: a new N(k), mu(k) or stage does not recompile the loss, its gradient or its draws."""
  target = SG if pairs.scales is None else CurriculumEma(mu0=0.9)
  loss = objective(target=target, pairs=pairs)
  bound = Preconditioned(as_net(TOY), ECT(NOISE))
  curriculum = pairs.scales or pairs.stages
  traces = []

  @quick_jit
  def step(theta, key, k):
    traces.append(k)
    value = lambda theta: (lambda out: (out.loss, out.metrics))(
      loss(theta, Context(bound, target_params=params[1]), batch, key, k)
    )
    return jax.value_and_grad(value, has_aux=True)(theta)

  changes = [k for start in curriculum.starts for k in (start - 1, start) if k >= 0]
  assert len(curriculum.starts) >= 4
  for k in (*changes, 10_000):
    (value, metrics), _ = step(params[0], jax.random.key(k), jnp.asarray(k, jnp.int32))
    piece = max(i for i, start in enumerate(curriculum.starts) if start <= k)
    assert int(metrics["stage" if pairs.scales is None else "num_scales"]) == curriculum.values[piece]
    assert np.isfinite(value)
    if target != SG:
      assert float(metrics["target_decay"]) == pytest.approx(
        0.9 ** (target.s0 / curriculum.values[piece]), rel=1e-6
      )
  assert len(traces) == 1


def test_draws_are_adjacent_levels_standard_noise_and_a_fresh_key():
  batch = {"image": np.zeros((64, 16, 16, 2), np.float32)}
  draw = quick_jit(lambda key: objective().draw(key, batch, jnp.array(199)))
  a, b = (draw(jax.random.key(seed)) for seed in range(2))
  assert (
    a.z.shape == (64, 16, 16, 2)
    and abs(float(a.z.mean())) < 5 / np.sqrt(a.z.size)
    and abs(float(a.z.std()) - 1) < 5 / np.sqrt(2 * a.z.size)
  )
  assert bool((a.t > a.r).all()) and len(np.unique(a.t)) > 5
  assert not (a.z == b.z).any()
  assert not (jax.random.key_data(a.key) == jax.random.key_data(b.key)).all()


def test_the_loss_says_whose_loss_it_is(params, batch):
  """per_example is weight x distance at t; loss is their mean, the metrics carry the unweighted distance."""
  loss = dataclasses.replace(objective(), weight=inverse_gap)
  bound = Preconditioned(as_net(TOY), Boundary(NOISE))
  draws = drawn(loss, batch)
  out, plain = quick_jit(
    lambda: [
      each.loss(params[0], Context(bound), batch, draws, jnp.array(150)) for each in (loss, objective())
    ]
  )()
  np.testing.assert_allclose(out.per_example, plain.per_example / (draws.t - draws.r), rtol=1e-5)
  assert float(out.loss) == pytest.approx(float(out.per_example.mean()))
  assert (out.noise_level == draws.t).all()
  assert float(out.metrics["distance"]) == pytest.approx(float(plain.loss))


def test_what_each_configuration_needs():
  assert objective("teacher", heun).needs.teacher and not objective("monte_carlo").needs.teacher
  assert objective().needs.target_decay is None
  assert objective(target=Ema(0.95)).needs.target_decay(jnp.array(7)) == 0.95
  decay = objective(target=CurriculumEma(mu0=0.9)).needs.target_decay
  assert float(decay(jnp.array(0))) == pytest.approx(0.9) and float(decay(jnp.array(199))) == pytest.approx(
    0.9 ** (2 / 21)
  )
  assert float(
    objective(target=CurriculumEma(mu0=0.9, convention="code")).needs.target_decay(jnp.array(0))
  ) == pytest.approx(0.81)
  assert set(SOLVERS) == {"euler", "heun"}


@pytest.mark.parametrize(
  ("field", "make"),
  [
    ("mu", lambda: Ema(1.0)),
    ("mu0", lambda: CurriculumEma(mu0=0.0)),
    ("convention", lambda: objective(target=CurriculumEma(mu0=0.9, convention="papers")).needs.target_decay),
    (
      "target.name",
      lambda: (
        objective(target=CurriculumEma(mu0=0.9), pairs=ContinuousPairs(stages(1, 1))).needs.target_decay
      ),
    ),
  ],
)
def test_bad_options_are_refused(field, make):
  with pytest.raises(UserError, match=field):
    make()
