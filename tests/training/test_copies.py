"""What a run in an object store makes of names that are there (`training/copies.py`), without a store."""

from cm_jax.storage import bucket
from cm_jax.training import copies
from cm_jax.training.step_folder import SEAL


class Listed:
  """A store with some names, which writes down what is asked of it."""

  def __init__(self, names: list[str]):
    self._names, self.fetched = names, []

  def find(self, path: str) -> list[str]:
    return [f"{path.removeprefix('s3://')}/{name}" for name in self._names]

  def get(self, there: list[str], here: list[str]) -> None:
    self.fetched += zip(there, here, strict=True)


def test_a_key_that_climbs_out_of_the_folder_is_not_fetched(monkeypatch):
  names = [
    "7/params/d/0",
    "7/params/../../../../home/x",
    "7/params/..",
    "7/other/a",
    f"7/{SEAL}",
    "8/params/d",
  ]
  store = Listed(names)
  monkeypatch.setattr(bucket, "filesystem", lambda path: store)
  there = copies.Copies("s3://b/run/checkpoints")
  assert there.steps() == [7] and there.is_cut_off()
  assert there.fetch(7, ["params"])
  assert [key for key, _ in store.fetched] == [
    f"s3://b/run/checkpoints/7/{name}" for name in ("params/d/0", SEAL)
  ]
  assert all(name.startswith(str(there.here / "7")) for _, name in store.fetched)
