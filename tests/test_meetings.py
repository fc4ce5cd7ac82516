"""What the processes of a job say to each other, with JAX's private names and without them."""

import json
import sys

import numpy as np
import pytest
from jax.experimental import multihost_utils

from cm_jax import coordination, meetings
from cm_jax.errors import UserError
from cm_jax.training import lost, peers

ERROR = UserError("source", "zip:ü.zip", "a file that is there")


class Store:
  """JAX's key-value store, in which others have spoken already."""

  def __init__(self, others: dict[int, str]):
    self.others, self.said, self.barriers = others, {}, []

  def key_value_set(self, key, value):
    assert key not in self.said
    self.said[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    return self.said[key] if key in self.said else self.others[int(key.rpartition("/")[2])]

  def wait_at_barrier(self, name, milliseconds):
    self.barriers.append(name)


@pytest.fixture(params=["store", "devices"])
def job(request, monkeypatch):
  """Be process 1 of 3, of which the others say what the test says."""

  def of(*others: str):
    texts, store = dict(zip((0, 2), others, strict=True)), None
    if request.param == "store":
      store = Store(texts)

    def gather(mine):
      """Every process calls it twice: how long its text is, then the text, as long as the longest."""
      contents = {number: np.frombuffer(text.encode(), np.uint8) for number, text in texts.items()}
      if mine.dtype == np.int32:
        return np.stack([np.array([contents[0].size]), mine, np.array([contents[2].size])])
      size = max(mine.size, *(content.size for content in contents.values()))
      return np.stack([np.pad(row, (0, size - row.size)) for row in (contents[0], mine, contents[2])])

    def long_enough(mine):
      found = gather(mine)
      if mine.dtype == np.int32:
        gather.longest = found.max()
      else:
        assert mine.size == gather.longest
      return found

    monkeypatch.setattr(coordination, "store", lambda: store)
    monkeypatch.setattr(coordination, "place", lambda: (1, 3))
    monkeypatch.setattr(multihost_utils, "process_allgather", long_enough)
    return store

  return of


def said(error: UserError) -> str:
  return json.dumps([str(part) for part in error.args])


def test_all_know_what_each_says_in_their_order(job):
  job("one", "three, which is longer")
  assert meetings.told("x", "zwölf") == ["one", "zwölf", "three, which is longer"]


def test_the_error_of_the_first_that_has_one_is_that_of_all(job):
  job("", said(ERROR))
  assert str(meetings.first_error(None)) == str(ERROR)
  with pytest.raises(UserError) as failed:
    meetings.together(lambda: 3)
  assert str(failed.value) == str(ERROR)


def test_an_error_of_this_one_is_raised_and_none_is_none(job):
  def fail():
    raise UserError("field", "x" * 5000, "shorter")

  job("", "")
  assert meetings.together(lambda: [7]) == [7] and meetings.first_error(None) is None
  with pytest.raises(UserError, match="^field = x+ ... x+: expected shorter$"):
    meetings.together(fail)


def test_a_meeting_is_named_anew_each_time(job, monkeypatch):
  store, synced = job("", ""), []
  monkeypatch.setattr(multihost_utils, "sync_global_devices", synced.append)
  meetings.meet()
  meetings.meet()
  names = synced if store is None else store.barriers
  assert len(set(names)) == 2


def test_a_jax_without_the_private_names_has_no_store_and_nothing_fails(monkeypatch, capsys):
  for name in ("distributed", "api"):
    monkeypatch.setitem(sys.modules, f"jax._src.{name}", None)
    monkeypatch.delattr(f"jax._src.{name}")
  assert (coordination.module(), coordination.store(), coordination.place()) == (None, None, (0, 1))
  assert not coordination.without_waiting()
  with lost.told_by(lambda: None):
    pass
  monkeypatch.setattr(coordination, "place", lambda: (0, 2))
  peers.watch(60.0)
  assert "this JAX does not show its coordination service" in capsys.readouterr().err and not peers.watched()
