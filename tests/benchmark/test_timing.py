"""Programs that were timed in turns: what is compared with what."""

from cm_jax.benchmark import timing


def test_a_slow_round_is_slow_for_both():
  slow = [1.0, 1.0, 10.0]
  assert timing.ratio([2 * t for t in slow], slow) == 2.0
  assert timing.excess([3 * t for t in slow], slow, [t / 2 for t in slow]) == 4.0
