import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm_jax.diffusion.curriculum import (
  CURRICULA,
  constant,
  doubling_scales,
  halving,
  progressive_scales,
  stages,
  target_decay,
)
from cm_jax.errors import UserError
from tests.compiling import quick_jit
from tests.golden_cases import golden_case


def progressive_formula(k: int, s0: int, s1: int, total: int) -> int:
  return max(math.ceil(math.sqrt(k / total * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1), 1) + 1


def doubling_formula(k: int, s0: int, s1: int, total: int) -> int:
  period = math.floor(total / (math.log2(math.floor(s1 / s0)) + 1))
  return min(s0 * 2 ** math.floor(k / period), s1) + 1


def at_every_step(curriculum, total: int) -> np.ndarray:
  """Evaluate under jit, the step traced, at every step of training and some beyond."""
  return np.asarray(quick_jit(jax.vmap(curriculum))(jnp.arange(total + 10)))


@pytest.mark.parametrize(
  ("s0", "s1", "total"), [(2, 150, 4_000), (2, 200, 20_011), (10, 1280, 5_000), (1, 5, 7), (3, 3, 50)]
)
def test_progressive_scales_are_the_formula_at_every_step(s0, s1, total):
  got = at_every_step(progressive_scales(s0, s1, total), total)
  assert got.dtype == np.int32
  assert got[:total].tolist() == [progressive_formula(k, s0, s1, total) for k in range(total)]
  assert (got[total:] == got[total - 1]).all()


@pytest.mark.parametrize(("s0", "s1"), [(2, 150), (2, 200)])
def test_progressive_scales_of_a_full_run(s0, s1):
  total = 800_000
  got = at_every_step(progressive_scales(s0, s1, total), total)
  # Independent of the formula's rounding: N - 1 = ceil(sqrt(v) - 1) says (N - 1)^2 < v <= N^2, exactly, with
  # v in units of 1/K.
  n, v = got[:total].astype(np.int64), np.arange(total) * ((s1 + 1) ** 2 - s0**2) + s0**2 * total
  at_least_one = n > 2  # below, the floor at 1 holds
  assert (v <= n**2 * total).all()
  assert (v > (n - 1) ** 2 * total)[at_least_one].all()
  assert got[0] == max(s0, 2) and got[total - 1] == s1 + 1


@pytest.mark.parametrize(
  ("s0", "s1", "total"),
  [(10, 1280, 4_000), (10, 1280, 4_003), (10, 160, 1_000), (2, 25, 999), (4, 4, 20), (1, 1024, 11)],
)
def test_doubling_scales_are_the_formula_at_every_step(s0, s1, total):
  got = at_every_step(doubling_scales(s0, s1, total), total)
  assert got.dtype == np.int32
  assert got[:total].tolist() == [doubling_formula(k, s0, s1, total) for k in range(total)]
  assert (got[total:] == got[total - 1]).all()


def test_doubling_scales_of_a_full_run():
  scales = doubling_scales(10, 1280, 400_000)  # iCT on CIFAR-10: eight stages of 50k
  assert scales.starts == tuple(range(0, 400_000, 50_000))
  assert scales.values == (11, 21, 41, 81, 161, 321, 641, 1281)


def test_stages_are_the_formula_at_every_step():
  got = at_every_step(stages(25, 8), 300)
  assert got.dtype == np.int32
  assert got[:300].tolist() == [min(math.floor(k / 25), 7) for k in range(300)]


def test_stages_without_a_cap_go_on_as_long_as_the_run_and_do_not_follow_it():
  """ECT's stage is not capped: its 400k row reaches stage 15, its 200k row 7 (audit B12)."""
  long, short = (stages(25_000, 0, length) for length in (400_000, 200_000))
  assert [int(long(k)) for k in (0, 24_999, 25_000, 199_999, 399_999)] == [0, 0, 1, 7, 15]
  assert int(short(199_999)) == 7 and short.starts == long.starts[:8]
  with pytest.raises(UserError, match="num_stages = 0: .* needs stage_images and num_images"):
    stages(0, 0, 100)
  with pytest.raises(UserError, match="num_stages = -1"):
    stages(10, -1, 100)


@pytest.mark.parametrize(("convention", "offset"), [("paper", 0), ("code", 1)])
def test_target_decay_is_the_formula_at_every_step(x64, convention, offset):
  s0, s1, mu0, total = 2, 150, 0.9, 4_000
  got = at_every_step(target_decay(progressive_scales(s0, s1, total), s0, mu0, convention), total)[:total]
  want = [
    math.exp(s0 * math.log(mu0) / (progressive_formula(k, s0, s1, total) - offset)) for k in range(total)
  ]
  np.testing.assert_allclose(got, want, rtol=1e-14)


def test_target_decay_in_float32():
  got = at_every_step(target_decay(progressive_scales(2, 150, 1_000), 2, 0.9), 1_000)[:1_000]
  want = [math.exp(2 * math.log(0.9) / progressive_formula(k, 2, 150, 1_000)) for k in range(1_000)]
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=1e-7)


def test_scales_and_decay_are_openais(x64):
  case = golden_case("E_openai_ema_scales")
  compared = 0
  for run, options in case.kwargs.items():
    steps = case.arrays[f"out_{run}__steps"]
    if options["scale_mode"] == "fixed":
      scales = constant(options["start_scales"])
    elif options["scale_mode"] == "progressive":
      scales = progressive_scales(options["start_scales"], options["end_scales"], options["total_steps"])
    else:
      continue  # progressive distillation halves its steps; not a curriculum of consistency models
    compared += 1
    # the peer's schedule grows without end; ours, as the paper's, is for k < K
    inside = steps < options["total_steps"]
    theirs = case.arrays[f"out_{run}__scales"][inside]
    assert np.asarray(quick_jit(scales)(steps))[inside].tolist() == theirs.tolist()
    if options["target_ema_mode"] == "adaptive":
      decay = target_decay(scales, options["start_scales"], options["start_ema"], "code")
      theirs = case.arrays[f"out_{run}__ema"][inside]
      np.testing.assert_allclose(np.asarray(quick_jit(decay)(steps))[inside], theirs, rtol=1e-12)
  assert compared


def test_no_average_at_mu0_of_zero():
  assert float(target_decay(progressive_scales(2, 10, 100), 2, 0.0)(50)) == 0.0


@pytest.mark.parametrize("name", sorted(CURRICULA))
def test_a_new_value_never_recompiles(name):
  curriculum = {
    "constant": lambda: constant(18),
    "progressive": lambda: progressive_scales(2, 150, 2_000),
    "doubling": lambda: doubling_scales(10, 1280, 2_000),
    "stages": lambda: stages(100, 8),
    "halving": lambda: halving(64, 200),
  }[name]()
  traces = []

  @quick_jit
  def value(step):
    traces.append(step)
    return curriculum(step)

  seen = {int(value(jnp.asarray(k, jnp.int32))) for k in (*curriculum.starts, 1_999)}
  assert seen == {int(v) for v in curriculum.values}
  assert len(traces) == 1


@pytest.mark.parametrize(
  "make",
  [
    lambda: progressive_scales(0, 150, 100),
    lambda: progressive_scales(20, 10, 100),
    lambda: progressive_scales(2, 150, 0),
    lambda: doubling_scales(0, 10, 100),
    lambda: doubling_scales(10, 1280, 0),
    lambda: stages(0, 8),
    lambda: stages(100, 0),
    lambda: stages(num_stages=8, length=7),
    lambda: halving(6, 10),
    lambda: halving(4),
    lambda: halving(4, length=2),
    lambda: halving(4, 10, last_factor=0.0),
    lambda: target_decay(constant(18), 2, 0.9, "papers"),
  ],
)
def test_bad_options_are_refused(make):
  with pytest.raises(UserError) as refused:
    make()
  fields = ("s0", "total_steps", "num_stages", "stage_steps", "first", "last_factor", "convention")
  assert refused.value.field in fields


@pytest.mark.parametrize("length", [24, 100, 801])
def test_what_is_left_0_follows_the_length_of_the_run(length):
  for curriculum in (progressive_scales, doubling_scales):
    assert curriculum(2, 20, length=length) == curriculum(2, 20, length)
    assert curriculum(2, 20, 50, length=length) == curriculum(2, 20, 50)
  assert stages(num_stages=8, length=length) == stages(length // 8, 8)
  for factor in (1.0, 2.0):
    followed = halving(8, last_factor=factor, length=length)
    assert followed.end == length and followed.values == (8, 4, 2, 1)
    lengths = np.diff((*followed.starts, length))
    share = length / (2 + 2 * factor)
    np.testing.assert_allclose(lengths, [share, share, factor * share, factor * share], atol=1)
