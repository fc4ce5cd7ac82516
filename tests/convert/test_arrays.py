"""Pickled dicts of arrays, as EDM2's reference statistics: read as they are, and nothing else."""

import io
import os
import pickle

import numpy as np
import pytest

from cm_jax.convert.readers.arrays import read_arrays
from cm_jax.convert.readers.pickles import Bounded, Refused

rng = np.random.default_rng(5)


def read(content, protocol=4):
  data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
  return read_arrays(Bounded(io.BytesIO(data)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
  "array",
  [
    rng.standard_normal((3, 4)),
    np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32)),
    rng.standard_normal(5).astype(">f8"),
    rng.standard_normal((4, 6))[::2, ::3],
    np.arange(7),
    np.zeros((0, 3)),
  ],
)
def test_arrays_come_back(protocol, array):
  found = read({"fid": {"mu": array, "n": 50_000, "scale": np.float64(0.25)}, "name": "x"}, protocol)
  np.testing.assert_array_equal(found["fid"]["mu"], array)
  assert (found["fid"]["n"], found["fid"]["scale"], found["name"]) == (50_000, 0.25, "x")


class Evil:
  def __reduce__(self):
    return (os.system, ("touch /tmp/never",))


@pytest.mark.parametrize(
  "content",
  [{"fid": Evil()}, [np.zeros(3)], {"mu": {1, 2}}, {"mu": np.array([{}], object)}, {"mu": np.array(["a"])}],
)
def test_what_is_no_dict_of_arrays_is_refused(content):
  with pytest.raises((Refused, ValueError, TypeError, LookupError, AttributeError)):
    read(content)


def test_an_array_of_other_bytes_is_refused():
  data = pickle.dumps({"mu": np.arange(300.0)}, 3)
  for shape in ((301,), (2**40, 2**40), (-300,)):
    for old in (b"M,\x01\x85",):  # the shape (300,)
      assert old in data
      with pytest.raises((Refused, ValueError)):
        read(data.replace(old, pickle.dumps(shape, 3)[2:-1].replace(b"q\x00", b"")))


def test_a_cut_file_is_refused():
  data = pickle.dumps({"fid": {"mu": np.arange(9.0)}}, 4)
  for end in range(0, len(data), 7):
    with pytest.raises((Refused, ValueError, TypeError, LookupError, AttributeError, EOFError)):
      read(data[:end])


def test_any_byte_may_be_wrong():
  """A reader that is given nonsense says so, or reads other numbers: it does nothing else."""
  data = pickle.dumps({"fid": {"mu": rng.standard_normal(3), "sigma": np.eye(3)}, "n": np.int64(7)}, 4)
  for _ in range(2000):
    bad = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
      bad[at] = rng.integers(0, 256)
    try:
      found = read(bytes(bad))
    except (Refused, ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError):
      continue
    assert isinstance(found, dict)
