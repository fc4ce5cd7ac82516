"""JSON lines: all or none, read past what a kill cut in half, dropped where a run goes back."""

import json

import pytest

from cm_jax.errors import UserError
from cm_jax.storage import lines
from tests.storage.places import disk_of, names, no_room

RECORDS = [{"step": step, "loss": step / 4} for step in range(4)]


def test_what_is_appended_is_read(place):
  file = place / "run" / "metrics.jsonl"
  assert lines.read(file) == []
  lines.append(file, RECORDS[:2])
  lines.append(file, RECORDS[2:])
  assert lines.read(file) == RECORDS and names(place) == ["run/metrics.jsonl"]
  assert file.read_text() == "".join(json.dumps(record) + "\n" for record in RECORDS)


def test_a_line_cut_in_half_is_none_and_is_removed_by_the_next(place):
  file = place / "a.jsonl"
  lines.append(file, RECORDS[:2])
  file.write_bytes(file.read_bytes() + b'{"step": 2, "lo')
  assert lines.read(file) == RECORDS[:2]
  lines.append(file, RECORDS[2:])
  assert lines.read(file) == RECORDS


def test_a_value_without_json_is_refused_and_nothing_is_written(place):
  file = place / "a.jsonl"
  lines.append(file, RECORDS[:1])
  with pytest.raises(ValueError, match="JSON"):
    lines.append(file, [RECORDS[1], {"loss": float("nan")}])
  assert lines.read(file) == RECORDS[:1]
  lines.append(file, [lines.finite({"loss": float("nan"), "bins": (1.0, float("inf"))})])
  assert lines.read(file)[1] == {"loss": None, "bins": [1.0, None]}


@pytest.mark.parametrize("where", ["fsync", "size"])
def test_on_a_full_disk_all_or_none(tmp_path, monkeypatch, where):
  file, new = tmp_path / "a.jsonl", tmp_path / "new.jsonl"
  lines.append(file, RECORDS[:1])

  def fill() -> None:
    for path in (file, new):
      with pytest.raises(UserError, match=f"^{path} = .*expected a place that can be written"):
        lines.append(path, [{"step": 1, "text": "x" * 500}])

  if where == "size":
    with disk_of(200):
      fill()
  else:
    with monkeypatch.context() as patched:
      patched.setattr("os.fsync", no_room)
      fill()
  assert lines.read(file) == RECORDS[:1] and names(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("bad", ["{", "[1]", "NaN...", '"text"'])
def test_a_line_that_is_no_record_is_named(place, bad):
  file = place / "a.jsonl"
  file.write_bytes(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n'.encode())
  with pytest.raises(UserError, match=r"a\.jsonl, line 2 = .*expected a JSON object a line"):
    lines.read(file)


def test_going_back_drops_what_came_after(place):
  file = place / "a.jsonl"
  lines.drop_after(file, 1)
  assert not file.exists()
  lines.append(file, RECORDS)
  file.write_bytes(file.read_bytes() + b'[1]\n{"loss": 1}\n{"step": 1, "cut')
  lines.drop_after(file, 1)
  assert lines.read(file) == RECORDS[:2]
