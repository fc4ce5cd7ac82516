"""What streams takes as much memory for many images as for few."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
from cm_jax.evaluation.evaluate import evaluate_images
from tests.evaluation.test_streaming import Plain
from tests.evaluation.toys import ToyExtractor
from cm_jax.evaluation.metrics import METRICS
METRICS["toy"] = Plain()
made = evaluate_images(sys.argv[1], ToyExtractor(), sys.argv[2], num=int(sys.argv[3]), metrics=["toy"]).made
print(made[0].n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_is_equal_for_two_and_ten_thousand_images(tmp_path):
  rng = np.random.default_rng(0)
  np.savez(tmp_path / "x.npz", rng.integers(0, 256, (10_000, 48, 48, 3), dtype=np.uint8))  # 69 MB
  np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
  peaks = []
  for num in (2_000, 10_000):
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", PROGRAM, tmp_path / "x.npz", tmp_path / "stats.npz", str(num)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count, peak = map(int, done.stdout.split())
    assert count == num
    peaks.append(peak / 1024)
  print(f"peak memory: {peaks[0]:.0f} MB for 2,000 images, {peaks[1]:.0f} MB for 10,000")
  assert abs(peaks[1] - peaks[0]) < 15
