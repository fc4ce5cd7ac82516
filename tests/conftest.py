"""What every test runs under: 8 fake CPU devices, full-precision products, no silent rank promotion, no
network cache of ours."""

import collections
import gc
import os
import pathlib
import signal

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# not the user's
os.environ.setdefault("CM_JAX_CACHE", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "cm_jax"))

import jax
import pytest

from tests import needs

# What a shell starts in the background begins with Ctrl-C ignored, and what the tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(
  50_000, 50, 100
)  # what is traced and compiled stays, and looking for garbage in it takes long
# Many tests train the same tiny model: compile it once.
jax.config.update(
  "jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config):
  """Compile without optimisation where only the quick tests run, here and in what they start: they compile
  for minutes what then computes for seconds. With the slow ones it is done as users have it."""
  if config.option.markexpr == "not slow":
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.fixture
def x64():
  """Float64 for the length of one test."""
  with jax.enable_x64(True):
    yield


def pytest_sessionfinish(session):
  """Fail where a test was skipped for a reason that tests/needs.py does not know; under xdist the first
  process decides."""
  reporter = session.config.pluginmanager.get_plugin("terminalreporter")
  if (
    reporter and any(reason not in needs.REASONS for reason in _skipped(reporter)) and session.exitstatus == 0
  ):
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
  """Say what did not run, and why."""
  skipped = _skipped(terminalreporter)
  missing = [f"{count} tests: {reason}" for reason, count in skipped.items() if reason in needs.REASONS]
  missing += [
    f"FAILED: {count} tests skipped, which is not allowed: {reason}"
    for reason, count in skipped.items()
    if reason not in needs.REASONS
  ]
  missing += (
    ["what is marked slow: bash launch/test.sh --all runs it"]
    if "not slow" in terminalreporter.config.option.markexpr
    else []
  )
  missing += (
    ["every test on a GPU or TPU: there is none here, 8 fake CPU devices stand in"]
    if jax.default_backend() == "cpu"
    else []
  )
  terminalreporter.section("not run here: why")
  for line in missing:
    terminalreporter.write_line(line)


def _skipped(reporter) -> collections.Counter[str]:
  reports = reporter.stats.get("skipped", [])
  return collections.Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
