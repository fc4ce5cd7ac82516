"""Reference numbers of the peers for pytest: the cases of `tests/golden`, and how to compare."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import needs
from tests.golden.runner import Case, relative_error

# Runs a test once in each float type: `with jax.enable_x64(double): ...`; the tolerances are the case's own
# for that type.
BOTH_PRECISIONS = pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])


def golden_case(name: str) -> Case:
  """Return a case, or skip the test where there is no folder of fixtures."""
  if not needs.GOLDEN.is_dir():
    pytest.skip(needs.NUMBERS)
  return Case(needs.GOLDEN / name)


def channels_last(array: np.ndarray) -> jax.Array:
  """Bring a peer's [N,C,H,W] into our layout, in the default float type."""
  return jnp.asarray(array.transpose(0, 2, 3, 1), jnp.result_type(float))


def channels_first(array: Any) -> np.ndarray:
  """Bring our [N,H,W,C] into the peers' layout."""
  return np.asarray(array).transpose(0, 3, 1, 2)


def assert_golden(case: Case, name: str, value: Any) -> None:
  """Check an output against its reference, within the case's tolerance for the default float type."""
  key = case.outputs()[name]
  dtype = str(jnp.result_type(float))
  reference, value = case.arrays[key], np.asarray(value)
  assert value.shape == reference.shape, name
  assert value.dtype == dtype or value.dtype.kind == "i", name
  error = relative_error(value.astype(np.float64), reference.astype(np.float64))
  tolerance = case.tolerance(key, dtype)
  assert error <= tolerance, f"{case.name} {name}: off by {error:.2e}, more than {tolerance:.2e}, in {dtype}"
