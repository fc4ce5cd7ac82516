import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.denoiser import Preconditioned
from cm_jax.diffusion.levels import Lognormal, VELevels, VPLevels
from cm_jax.diffusion.precond import EDM
from cm_jax.diffusion.weights import snr, uniform
from cm_jax.errors import UserError
from cm_jax.networks.weighting import LogVariance
from cm_jax.objectives.denoising import Denoising, DenoisingDraws
from cm_jax.types import Condition, Context, NoiseRange
from tests.compiling import quick_jit

NOISE = NoiseRange(sigma_data=0.4)
BATCH = {
  "image": np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 2)),
  "label": np.arange(3),
  "augment_label": np.ones((3, 2)),
}


def test_the_loss_by_hand(x64):
  sigma, z = np.array([0.01, 0.5, 10.0]), np.random.default_rng(1).normal(size=(3, 2, 2, 2))
  bound = Preconditioned(
    lambda params, x, c_noise, condition, key=None: params * jnp.ones_like(x), EDM(NOISE)
  )
  x, level = BATCH["image"], sigma[:, None, None, None]
  x_t = x + level * z
  D = 0.16 / (level**2 + 0.16) * x_t + level * 0.4 / np.sqrt(level**2 + 0.16) * 0.3
  each = ((sigma**2 + 0.16) / (0.4 * sigma) ** 2)[:, None] * ((D - x) ** 2).reshape(3, -1)
  draws = DenoisingDraws(jnp.asarray(sigma), jnp.asarray(z), None, jax.random.key(0))
  for reduction, want in (("sum", each.sum(1)), ("mean", each.mean(1))):
    objective = Denoising(NOISE, reduction=reduction)
    out = quick_jit(lambda o=objective: o.loss({"net": 0.3}, Context(bound), BATCH, draws, jnp.array(0)))()
    np.testing.assert_allclose(out.per_example, want, rtol=1e-12)
    assert float(out.loss) == pytest.approx(want.mean(), rel=1e-12)
    assert (out.noise_level == draws.sigma).all() and not out.metrics


def test_the_student_is_bound_with_the_labels_and_the_dropout_key():
  seen = []

  def student(params, condition, key):
    seen.append((condition, key))
    return lambda x, sigma: x

  draws = DenoisingDraws(jnp.ones(3), jnp.zeros((3, 2, 2, 2)), None, jax.random.key(3))
  Denoising(NOISE).loss(None, Context(student), BATCH, draws, jnp.array(0))
  (bound,) = seen
  assert bound == (Condition(BATCH["label"], BATCH["augment_label"]), draws.key)


def test_noise_levels_are_lognormal():
  batch = {"image": jnp.zeros((50_000, 1, 1, 1))}
  draws = quick_jit(lambda key: Denoising(NOISE, Lognormal(-0.4, 1.0)).draw(key, batch, 0))(jax.random.key(0))
  log_sigma = np.log(draws.sigma)
  assert abs(log_sigma.mean() + 0.4) < 5 / np.sqrt(50_000) and abs(log_sigma.std() - 1) < 5 / np.sqrt(100_000)
  assert abs(np.mean(draws.z)) < 5 / np.sqrt(50_000) and abs(np.std(draws.z) - 1) < 5 / np.sqrt(100_000)
  assert abs(np.corrcoef(log_sigma, np.ravel(draws.z))[0, 1]) < 5 / np.sqrt(50_000)


def test_a_bad_reduction_is_refused():
  with pytest.raises(UserError, match="reduction"):
    Denoising(NOISE, reduction="total")


@pytest.mark.parametrize("levels", [VPLevels(), VELevels(), Lognormal()])
def test_the_loss_takes_the_levels_and_the_weight_it_is_given(x64, levels):
  bound = Preconditioned(
    lambda params, x, c_noise, condition, key=None: params * jnp.ones_like(x), EDM(NOISE)
  )
  image = {"image": jnp.asarray(BATCH["image"])}

  @quick_jit
  def drawn(key):
    return Denoising(NOISE, levels, snr).draw(key, image, 0), levels(jax.random.split(key, 4)[0], 3)

  draws, sigma = drawn(jax.random.key(0))
  np.testing.assert_allclose(draws.sigma, sigma)
  plain, weighted = quick_jit(
    lambda: [
      Denoising(NOISE, levels, weight).loss({"net": 0.3}, Context(bound), BATCH, draws, 0)
      for weight in (uniform, snr)
    ]
  )()
  np.testing.assert_allclose(weighted.per_example, plain.per_example / draws.sigma**2, rtol=1e-10)


@pytest.mark.slow
def test_uncertainty_is_least_where_e_to_the_u_is_the_loss(x64):
  """L/e^u + u has its minimum 1 + ln L at u = ln L, and the denoiser's gradient is that of L over e^u (EDM2
  eq. 15)."""
  objective = Denoising(NOISE, reduction="mean", uncertainty=True)
  bound = Preconditioned(
    lambda params, x, c_noise, condition, key=None: params * jnp.ones_like(x), EDM(NOISE)
  )
  draws = DenoisingDraws(
    jnp.array([0.01, 0.5, 10.0]), jax.random.normal(jax.random.key(1), (3, 2, 2, 2)), None, jax.random.key(0)
  )
  head = objective.needs.weighting(jax.random.key(2))
  run = lambda net, head: objective.loss({"net": net, "weighting": head}, Context(bound), BATCH, draws, 0)
  plain = Denoising(NOISE, reduction="mean").loss({"net": 0.3}, Context(bound), BATCH, draws, 0).per_example
  u = LogVariance().apply({"params": head}, jnp.log(draws.sigma) / 4)
  assert float(u.std()) > 0.1
  np.testing.assert_allclose(run(0.3, head).per_example, plain / jnp.exp(u) + u, rtol=1e-10)
  assert float(run(0.3, head).metrics["weighted_error"]) == pytest.approx(float(plain.mean()))
  assert bool((run(0.3, head).per_example >= 1 + jnp.log(plain)).all())
  learned = jax.grad(lambda head: run(0.3, head).loss)(head)
  assert float(jnp.abs(learned["logvar_linear"]["weight"]).max()) > 0


@pytest.mark.slow
def test_a_sum_with_uncertainty_is_edm2s_sum_over_pixels(x64):
  """EDM2 sums lambda / e^u |D - x|^2 + u over pixels: D times the mean's loss and gradient."""
  bound = Preconditioned(
    lambda params, x, c_noise, condition, key=None: params * jnp.ones_like(x), EDM(NOISE)
  )
  z = jax.random.normal(jax.random.key(1), (3, 2, 2, 2))
  draws = DenoisingDraws(jnp.array([0.02, 0.3, 20.0]), z, None, jax.random.key(0))
  summed, mean = (Denoising(NOISE, reduction=how, uncertainty=True) for how in ("sum", "mean"))
  head = summed.needs.weighting(jax.random.key(3))
  loss = lambda objective: lambda params: objective.loss(params, Context(bound), BATCH, draws, 0).loss
  params = {"net": 0.2, "weighting": head}
  (one, gradient), (other, of_mean) = (
    jax.value_and_grad(loss(objective))(params) for objective in (summed, mean)
  )
  assert float(one) == pytest.approx(8 * float(other), rel=1e-12)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 8 * b, rtol=1e-10), gradient, of_mean)


def test_label_dropout_hides_labels_from_the_network_at_its_rate():
  seen = []

  def net(params, x, c_noise, condition, key=None):
    seen.append(condition.label)
    return jnp.zeros_like(x)

  objective, n = Denoising(NOISE, label_dropout=0.1), 20_000
  batch = {"image": jnp.zeros((n, 1, 1, 1)), "label": jnp.arange(n) % 7}
  draws = objective.draw(jax.random.key(0), batch, 0)
  objective.loss({"net": None}, Context(Preconditioned(net, EDM(NOISE))), batch, draws, 0)
  hidden = np.asarray(seen[0]) == -1
  assert abs(hidden.mean() - 0.1) < 5 * np.sqrt(0.09 / n)
  np.testing.assert_array_equal(np.asarray(seen[0])[~hidden], np.asarray(batch["label"])[~hidden])
  with pytest.raises(UserError, match=r"label_dropout = 1\.0"):
    Denoising(NOISE, label_dropout=1.0)
