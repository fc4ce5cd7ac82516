"""sCM in TrigFlow on Gaussian data: the tangent against finite differences, both parameterisations, the
discrete fallback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import constant
from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.drifts import DRIFTS
from cm_jax.diffusion.levels import Lognormal
from cm_jax.diffusion.noise import append_dims
from cm_jax.diffusion.pairs import KarrasPairs
from cm_jax.diffusion.precond import EDM, VP, TrigFlow
from cm_jax.errors import UserError
from cm_jax.networks.weighting import AdaptiveWeight
from cm_jax.objectives.scm import Scm, ScmDraws, velocity
from cm_jax.types import Condition, Context, NoiseRange
from tests.compiling import quick_jit
from tests.gaussian import Gaussian, quadrature

NOISE = NoiseRange(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
SIGMA_DATA = NOISE.sigma_data
DATA = Gaussian(mean=0.2, std=0.4)
TRUTH = {"net": {"mean": 0.2, "std": 0.4}}
OFF = {"net": {"mean": 0.3, "std": 0.6}}
STEP = np.int32(0)
T = np.arctan(np.array([0.01, 0.1, 0.6, 2.0, 20.0, 75.0]) / SIGMA_DATA)


def net_of(function):
  """A network with EDM's preconditioning whose denoiser is function(params, x, sigma)."""

  def net(params, x_in, c_noise, condition=None, key=None):
    sigma = jnp.exp(4 * c_noise)
    c_skip, c_out, c_in, _ = EDM(NOISE)(sigma)
    x = x_in / append_dims(c_in, x_in)
    return (function(params, x, sigma) - append_dims(c_skip, x) * x) / append_dims(c_out, x)

  return net


denoiser = Preconditioned(
  net_of(lambda p, x, sigma: Gaussian(p["mean"], p["std"]).denoise(x, sigma)), EDM(NOISE)
)
consistency = Preconditioned(
  net_of(lambda p, x, sigma: Gaussian(p["mean"], p["std"]).consistency(0.0)(x, sigma)), EDM(NOISE)
)


def curved_net(params, x, c_noise, condition=Condition(), key=None):  # noqa: B008
  p = params
  out = p["a"] * jnp.tanh(p["b"] * (x + p["e"] * x[:, ::-1]) + append_dims(p["c"] * c_noise + p["d"], x))
  return out if condition.guidance is None else out + 0.1 * append_dims(condition.guidance, x)


CURVED = {"net": {"a": 0.7, "b": 1.1, "c": -0.6, "d": 0.2, "e": 0.3}}


def plain(drift: str, **fields) -> Scm:
  return Scm(NOISE, DRIFTS[drift](), adaptive=False, **fields)


def images(seed: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=(6, 2, 1, 1)))


def draws_at(t, z, guidance=None) -> ScmDraws:
  return ScmDraws(t, z, guidance, jax.random.key(0))


@pytest.mark.parametrize("precond", [EDM, TrigFlow])
def test_the_tangent_is_that_of_finite_differences(x64, precond):
  """g = cos t df/dt along the teacher's exact path x_t = cos t x_sigma, for any network."""
  student, x, z = Preconditioned(curved_net, precond(NOISE)), images(0), images(1)
  context = Context(student, denoiser, teacher_params=TRUTH)
  tangent = lambda: plain("teacher").tangent(CURVED, context, {"image": x}, draws_at(T, z), STEP)
  column = lambda values: values[:, None, None, None]
  sigma, f, h = SIGMA_DATA * np.tan(T), student(CURVED), 1e-6
  x_sigma = x + column(sigma) * z

  def along(s):
    level = SIGMA_DATA * np.tan(T + s)
    return f(DATA.path(x_sigma, sigma, level), level)

  (F, g), below, at, above = jax.device_get(quick_jit(lambda: (tangent(), along(-h), along(0), along(h)))())
  cos, sin = column(np.cos(T)), column(np.sin(T))
  np.testing.assert_allclose(g, cos * (above - below) / (2 * h), rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(cos * cos * x_sigma - sin * SIGMA_DATA * F, at, rtol=1e-9, atol=1e-12)


def test_the_tangent_vanishes_at_the_exact_consistency_function(x64):
  x, z = images(0), images(1)
  context = Context(consistency, denoiser, teacher_params=TRUTH)
  tangent = lambda params: plain("teacher").tangent(params, context, {"image": x}, draws_at(T, z), STEP)[1]
  g = quick_jit(tangent)
  assert float(jnp.abs(g(TRUTH)).max()) < 1e-10
  assert float(jnp.abs(g(OFF)).max()) > 1e-3


def gradient(objective, student, params, nodes=40) -> np.ndarray:
  """The exact expectation over data, noise and six angles of an unnormalised objective's gradient."""
  x, z, interval, weight = quadrature(DATA, NOISE, 7, nodes)
  t = quick_jit(lambda i: jnp.arctan(KarrasPairs(NOISE, constant(7)).at(i, 7)[0] / SIGMA_DATA))(interval)
  context = Context(student, denoiser, teacher_params=TRUTH)

  def pulled(params):  # -2 F . sg(g): what normalisation and weights only rescale per example
    F, g = objective.tangent(params, context, {"image": x}, draws_at(t, z), STEP)
    return weight @ (-2 * F * jax.lax.stop_gradient(g)).reshape(len(weight))

  return np.array([float(leaf) for leaf in jax.tree.leaves(quick_jit(jax.grad(pulled))(params))])


def test_training_pulls_where_distillation_does(x64):
  """E[dx/dt | x_t] is the teacher's, and the tangent is linear in it: equal expected gradients (sCM appendix
  B.3)."""
  student = Preconditioned(curved_net, EDM(NOISE))
  ct, cd = gradient(plain("monte_carlo"), student, CURVED), gradient(plain("teacher"), student, CURVED)
  np.testing.assert_allclose(ct, cd, rtol=0, atol=1e-3 * np.abs(cd).max())
  assert (
    np.abs(gradient(plain("monte_carlo"), consistency, TRUTH)).max()
    < 1e-8
    < np.abs(gradient(plain("monte_carlo"), consistency, OFF)).max()
  )


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"c": 0.1}, {"clip": 0.5}], ids=["normalised", "clipped"])
def test_the_loss_has_the_gradient_of_the_normalised_pull(x64, fields):
  """grad ||F - sg(F + g')||^2/D e^w = -2 e^w/D g' . grad F, with g' = g/(||g|| + c) or clipped.

  Its value is ||g'||^2/D e^w - w.
  """
  student, x, z = Preconditioned(curved_net, EDM(NOISE)), images(0), images(1)
  context, draws, objective = (
    Context(student, denoiser, teacher_params=TRUTH),
    draws_at(T, z),
    Scm(NOISE, DRIFTS["teacher"](), **fields),
  )
  head = jax.tree.map(lambda leaf: leaf + 0.3, objective.needs.weighting(jax.random.key(0)))
  w = AdaptiveWeight().apply({"params": head}, jnp.log(SIGMA_DATA * jnp.tan(T)) / 4)
  assert float(w.std()) > 0.01
  params = {**CURVED, "weighting": head}
  F_of = lambda net: objective.tangent({"net": net}, context, {"image": x}, draws, STEP)[0]
  g = objective.tangent(params, context, {"image": x}, draws, STEP)[1]
  used = (
    np.clip(g, -0.5, 0.5)
    if "clip" in fields
    else g / (np.sqrt(np.sum(np.square(g), axis=(1, 2, 3), keepdims=True)) + 0.1)
  )
  loss = lambda params: objective.loss(params, context, {"image": x}, draws, STEP)
  np.testing.assert_allclose(
    loss(params).per_example, jnp.exp(w) * np.mean(np.square(used), axis=(1, 2, 3)) - w, rtol=1e-10
  )
  np.testing.assert_allclose(loss(params).by_level["log_weight"], w, rtol=1e-12)
  pull = lambda net: jnp.mean(jnp.exp(w) * (-2 * F_of(net) * used).mean(axis=(1, 2, 3)))
  got, want = jax.grad(lambda params: loss(params).loss)(params)["net"], jax.grad(pull)(params["net"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), got, want)


def test_an_edm_network_is_a_trigflow_network_under_another_name(x64):
  """F_trig(x, t) = -F_EDM(x, ln(sigma_data tan t)/4): the same loss and gradient, and the same denoiser."""

  def as_trigflow(params, x, t, condition, key=None):
    return -curved_net(params, x, jnp.log(SIGMA_DATA * jnp.tan(t)) / 4, condition)

  x, z = images(0), images(1)
  edm, trig = Preconditioned(curved_net, EDM(NOISE)), Preconditioned(as_trigflow, TrigFlow(NOISE))
  sigma = SIGMA_DATA * np.tan(T)
  np.testing.assert_allclose(
    *quick_jit(lambda: (edm(CURVED)(x, sigma), trig(CURVED)(x, sigma)))(), rtol=1e-10
  )
  loss = lambda student: jax.value_and_grad(
    lambda p: (
      plain("teacher")
      .loss(p, Context(student, denoiser, teacher_params=TRUTH), {"image": x}, draws_at(T, z), STEP)
      .loss
    )
  )(CURVED)
  both = quick_jit(lambda: (loss(edm), loss(trig)))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), *both)


def test_float32_holds_at_both_ends():
  """The quotient form is 0 / 0 at t = 1e-5; here value and tangent stay finite and right where sigma is 1e-4
  and 1e4 sigma_data."""
  t = np.array([1e-4, 1e-2, 0.5, 1.5, np.pi / 2 - 1e-3, np.pi / 2 - 1e-4])
  student, objective = Preconditioned(curved_net, EDM(NOISE)), plain("monte_carlo")
  run = lambda dtype: objective.tangent(
    CURVED,
    Context(student),
    {"image": images(0).astype(dtype)},
    draws_at(jnp.asarray(t, dtype), images(1).astype(dtype)),
    STEP,
  )
  F, g = run(jnp.float32)
  with jax.enable_x64(True):
    F_exact, g_exact = run(jnp.float64)
  # ln tan t at pi/2 - 1e-4 has 3 digits in float32
  np.testing.assert_allclose(F, F_exact, rtol=2e-3, atol=1e-4)
  np.testing.assert_allclose(g, g_exact, rtol=2e-3, atol=2e-4)


def test_the_discrete_fallback_tends_to_the_tangent_at_first_order(x64):
  student, x, z = Preconditioned(curved_net, EDM(NOISE)), images(0), images(1)
  context = Context(student, denoiser, teacher_params=TRUTH)
  tangent = lambda **fields: plain("teacher", **fields).tangent(
    CURVED, context, {"image": x}, draws_at(T, z), STEP
  )[1]
  exact = tangent()
  errors = [
    float(jnp.linalg.norm((tangent(scales=constant(n)) - exact).ravel()) / jnp.linalg.norm(exact.ravel()))
    for n in (513, 1025, 2049)
  ]
  rates = np.log2(np.array(errors[:-1]) / errors[1:])
  print("dsCM against the tangent: relative errors", errors, "rates", rates)
  assert errors[-1] < 0.02 and (np.abs(rates - 1) < 0.2).all(), (errors, rates)


def test_the_discrete_fallback_is_a_difference_of_f(x64):
  """For rho = 1, g = cos t (f(x_t, t) - f(x_t', t'))/sin(t - t') with one DDIM step between, at any N."""
  student, x, z = Preconditioned(curved_net, EDM(NOISE)), images(0), images(1)
  context, objective = Context(student, denoiser, teacher_params=TRUTH), plain("teacher", scales=constant(10))
  _, g = objective.tangent(CURVED, context, {"image": x}, draws_at(T, z), STEP)
  sigma = SIGMA_DATA * jnp.tan(T)
  lower = objective.level_below(sigma, 10)
  assert bool((lower < sigma).all()) and bool((lower >= 0).all())
  t_lower = jnp.arctan(lower / SIGMA_DATA)
  x_sigma, f = x + append_dims(sigma, x) * z, student(CURVED)
  x_t = append_dims(jnp.cos(T), x) * x_sigma
  rate, gap = velocity(denoiser, TRUTH, x_t, T, SIGMA_DATA), append_dims(T - t_lower, x)
  x_lower = (jnp.cos(gap) * x_t - jnp.sin(gap) * rate) / append_dims(jnp.cos(t_lower), x)
  difference = (f(x_sigma, sigma) - f(x_lower, lower)) / jnp.sin(gap)
  np.testing.assert_allclose(g, append_dims(jnp.cos(T), x) * difference, rtol=1e-7, atol=1e-10)


def test_levels_below_are_the_karras_grids():
  grid = [float(KarrasPairs(NOISE, constant(18)).at(jnp.array([i]), 18)[0][0]) for i in range(18)]
  below = plain("teacher", scales=constant(18)).level_below(jnp.array(grid), 18)
  np.testing.assert_allclose(below[:-1], grid[1:], rtol=1e-4)
  assert 0 < float(below[-1]) < grid[-1]


def test_a_teacher_of_any_preconditioning_gives_the_velocity(x64):
  """The closed form: dx/dt of x_t = cos t x_sigma on the exact path. An EDM teacher of our sigma_data takes
  the form without quotient."""
  x, z = images(0), images(1)
  sigma = SIGMA_DATA * jnp.tan(T)
  x_sigma, h = x + append_dims(sigma, x) * z, 1e-6
  at = lambda s: append_dims(jnp.cos(T + s), x) * DATA.path(x_sigma, sigma, SIGMA_DATA * jnp.tan(T + s))
  want = (at(h) - at(-h)) / (2 * h)

  class Quotient:
    """The exact denoiser with scalings that have no TrigFlow form."""

    precond = VP(NOISE)

    def __call__(self, params, condition=None, key=None):
      return DATA.denoise

  for teacher in (denoiser, Quotient()):
    got = velocity(teacher, TRUTH, append_dims(jnp.cos(T), x) * x_sigma, T, SIGMA_DATA)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_guidance_extrapolates_the_teacher_and_reaches_the_student(x64):
  x, z, label, scale = images(0), images(1), np.zeros(6, np.int32), np.linspace(1, 2, 6)

  def two_classes(p, x, sigma, label):
    return jnp.where(
      (label == 0)[:, None, None, None],
      Gaussian(0.4, 0.3).denoise(x, sigma),
      Gaussian(0.2, 0.4).denoise(x, sigma),
    )

  def teacher_net(params, x_in, c_noise, condition, key=None):
    return net_of(lambda p, x, sigma: two_classes(p, x, sigma, condition.label))(params, x_in, c_noise)

  teacher = Preconditioned(teacher_net, EDM(NOISE))
  objective = plain("teacher", guidance=(1.0, 2.0))
  batch = {"image": x, "label": label}
  context = Context(Preconditioned(curved_net, EDM(NOISE)), teacher, teacher_params=TRUTH)
  F, g = objective.tangent(CURVED, context, batch, draws_at(T, z, scale), STEP)
  assert (
    float(jnp.abs(F - objective.tangent(CURVED, context, batch, draws_at(T, z, scale + 1), STEP)[0]).min())
    > 0
  )
  # The same as distilling a teacher whose denoiser is D_unc + s (D_cond - D_unc): F and D are linear in each
  # other.
  guided = lambda p, x, sigma: (
    (1 - append_dims(scale, x)) * Gaussian(0.2, 0.4).denoise(x, sigma)
    + append_dims(scale, x) * Gaussian(0.4, 0.3).denoise(x, sigma)
  )
  by_hand = plain("teacher").tangent(
    CURVED,
    context._replace(teacher=Preconditioned(net_of(guided), EDM(NOISE))),
    batch,
    draws_at(T, z, scale),
    STEP,
  )[1]
  np.testing.assert_allclose(g, by_hand, rtol=1e-7, atol=1e-10)
  drawn = objective.draw(jax.random.key(0), {"image": jnp.zeros((100, 1, 1, 1))}, STEP).guidance
  assert 1 <= float(drawn.min()) < 1.2 and 1.8 < float(drawn.max()) <= 2


def test_warmup_brings_in_the_second_part_of_the_tangent(x64):
  student, x, z = Preconditioned(curved_net, EDM(NOISE)), images(0), images(1)
  context = Context(student, denoiser, teacher_params=TRUTH)
  g = lambda step, warmup: plain("teacher", warmup_steps=warmup).tangent(
    CURVED, context, {"image": x}, draws_at(T, z), np.int32(step)
  )[1]
  cos, sin = append_dims(jnp.cos(T), x), append_dims(jnp.sin(T), x)
  x_t = cos * x + sin * SIGMA_DATA * z
  F = plain("teacher").tangent(CURVED, context, {"image": x}, draws_at(T, z), STEP)[0]
  first = -(cos**2) * (SIGMA_DATA * F - velocity(denoiser, TRUTH, x_t, T, SIGMA_DATA))
  np.testing.assert_allclose(g(4, 10), first + 0.5 * (g(10**6, 10) - first), rtol=1e-9)
  np.testing.assert_allclose(g(9, 10), g(0, 0))


def test_angles_follow_the_levels():
  objective = Scm(NOISE, DRIFTS["monte_carlo"](), Lognormal(-0.5, 0.7))
  draw = quick_jit(lambda key: objective.draw(key, {"image": jnp.zeros((20_000, 1, 1, 1))}, STEP).t)
  t = np.asarray(draw(jax.random.key(0)))
  log_sigma = np.log(SIGMA_DATA * np.tan(t))
  assert abs(log_sigma.mean() + 0.5) < 0.03 and abs(log_sigma.std() - 0.7) < 0.03


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"drift": "teacher", "c": -1.0}, r"c = -1"),
    ({"drift": "monte_carlo", "guidance": (1.0, 2.0)}, r"guidance"),
    ({"drift": "teacher", "guidance": (2.0, 1.0)}, r"guidance"),
    ({"drift": "teacher", "scales": constant(1)}, r"scales = 1"),
  ],
)
def test_bad_fields_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    Scm(NOISE, **{**fields, "drift": DRIFTS[fields["drift"]]()})
