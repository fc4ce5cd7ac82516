"""The places that storage is tested in."""

import pytest
from etils import epath

from tests.storage.places import STORED, WRITES


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
  """An empty place of either kind; what a test in memory leaves is gone after it."""
  if request.param == "local":
    yield epath.Path(tmp_path)
    return
  STORED.clear()
  WRITES.clear()
  yield epath.Path("memory://bucket/folder")
  STORED.clear()
