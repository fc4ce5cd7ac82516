"""A record is written whole or not at all, and says what was measured."""

import dataclasses
import json
import re

import pytest

from cm_jax.errors import UserError
from cm_jax.evaluation import records
from cm_jax.evaluation.records import Record, append, provenance, read

ONE = Record(
  metric="fd_digits", value=0.6, n=5000, nfe=2, sigmas=(80.0, 0.8), sampler={"name": "multistep"}, seed=0
)
TWO = Record(metric="class_entropy", value=0.99)


def test_the_fields_are_those_of_the_design():
  assert [field.name for field in dataclasses.fields(Record)] == [
    *(
      "metric",
      "value",
      "n",
      "nfe",
      "sigmas",
      "average",
      "step",
      "seed",
      "sampler",
      "config_sha256",
      "dataset_fingerprint",
      "reference",
    ),
    *("convention", "resize", "features_hash", "quantiser", "splits", "subsets", "neighbours", "guidance"),
    *("dtype", "matmul_precision", "device", "versions", "commit", "seconds", "images_per_second"),
    *("features", "reference_hash", "samples", "choices"),  # and what issue 12 asks for beyond it
  ]


def test_round_trip(tmp_path):
  path = tmp_path / "evaluations.jsonl"
  append(path, [ONE, TWO])
  append(path, [])
  append(path, [TWO])
  assert read(path) == [ONE, TWO, TWO]
  lines = path.read_text().splitlines()
  assert len(lines) == 3 and json.loads(lines[1])["nfe"] is None


def test_an_unfinished_line_does_not_count_and_is_replaced(tmp_path):
  path = tmp_path / "evaluations.jsonl"
  append(path, [ONE, TWO])
  path.write_bytes(path.read_bytes()[:-5])
  assert read(path) == [ONE]
  append(path, [TWO])
  assert read(path) == [ONE, TWO]


def test_nothing_is_written_of_what_json_cannot_hold(tmp_path):
  path = tmp_path / "evaluations.jsonl"
  append(path, [ONE])
  with pytest.raises(ValueError):
    append(path, [TWO, dataclasses.replace(ONE, value=float("nan"))])
  assert read(path) == [ONE]


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"metric": "a", "value": 1, "colour": 2}', "[1]"])
def test_a_bad_line_is_named(tmp_path, line):
  path = tmp_path / "evaluations.jsonl"
  append(path, [ONE])
  with path.open("a") as file:
    file.write(line + "\n")
  with pytest.raises(UserError, match=r"evaluations\.jsonl, line 2"):
    read(path)


@pytest.mark.parametrize(
  "field,value",
  [("sigmas", 3), ("sigmas", [80, "x"]), ("sigmas", True), ("value", "low"), ("n", 1.5), ("step", [1])]
  + [("versions", ["0.4"]), ("versions", {"jax": 4}), ("sampler", 2), ("average", 0), ("seconds", True)],
)
def test_a_field_of_another_type_is_named(tmp_path, field, value):
  path = tmp_path / "evaluations.jsonl"
  path.write_text(json.dumps({"metric": "fd_digits", "value": 2, field: value}) + "\n")
  with pytest.raises(UserError, match=rf"line 1: {field} = "):
    records.read(path)


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match="evaluate"):
    read(tmp_path / "evaluations.jsonl")


def test_provenance_fills_the_record():
  record = Record(metric="a", value=1.0, **provenance())
  assert (
    set(record.versions) == {"python", "jax", "jaxlib", "flax", "optax", "cm_jax"}
    and record.device == "8 x cpu"
  )
  assert record.commit is None or re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", record.commit)


def test_commit_is_that_of_this_checkout_or_none(tmp_path, monkeypatch):
  import subprocess

  def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
      ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()

  module = tmp_path / "records.py"
  module.write_text("pass\n")
  monkeypatch.setattr(records, "__file__", str(module))
  assert records.commit() is None
  git("init", "-q")
  git("commit", "-qm", "empty", "--allow-empty")
  assert records.commit() is None  # another project's checkout: it does not hold this file
  git("add", ".")
  git("commit", "-qm", "one")
  assert records.commit() == git("rev-parse", "HEAD")
  module.write_text("changed\n")
  assert records.commit() == git("rev-parse", "HEAD") + "+dirty"
