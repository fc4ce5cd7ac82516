"""What some tests need and this machine may lack: the only reasons to skip one. tests/conftest.py lists them
at the end of a run."""

import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest

TORCH = "needs torch, for comparisons: pip install -e '.[torch]'"
TRANSFORMERS = "needs torch and transformers, for parity: pip install -e '.[parity]'"
NUMBERS = "needs the reference numbers of the peers' own code: set GOLDEN_DIR to their folder"
SLURM = "needs Slurm, and root to start it: apt-get install --no-install-recommends slurm-wlm munge"
BUCKETS = "needs moto's server, for object stores: pip install -e '.[parity]'"
REASONS = (TORCH, TRANSFORMERS, NUMBERS, SLURM, BUCKETS)
GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[2] / "shared" / "golden")

slurm = pytest.mark.skipif(
  os.geteuid() != 0 or not shutil.which("slurmctld") or not shutil.which("munge"), reason=SLURM
)
numbers = pytest.mark.skipif(not GOLDEN.is_dir(), reason=NUMBERS)


def torch() -> ModuleType:
  """Return the module torch, or skip."""
  return pytest.importorskip("torch", reason=TORCH)


def transformers() -> ModuleType:
  """Return the module transformers, with torch beside it, or skip."""
  pytest.importorskip("torch", reason=TRANSFORMERS)
  return pytest.importorskip("transformers", reason=TRANSFORMERS)


def buckets() -> None:
  """Skip unless there is what serves a bucket here and what reaches it."""
  for name in ("moto", "flask", "flask_cors", "s3fs"):
    pytest.importorskip(name, reason=BUCKETS)
