"""JSON of anybody's: bounded depth, bounded memory, regular files only, and one line to a terminal."""

import os

import pytest

from cm_jax.errors import UserError
from cm_jax.storage import bounded, lines, run, weights

DEEP = {"lists": "[" * 5000 + "]" * 5000, "objects": '{"a":' * 40 + "1" + "}" * 40, "unclosed": "[" * 200_000}
DAMAGED = {**DEEP, "long integer": "1" * 5000, "half a character": r'{"a": "\ud812"}', "words": "hello"}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_json_is_said_in_one_short_line(name):
  with pytest.raises(UserError) as caught:
    bounded.parse_json(DAMAGED[name], "x.json", "an object")
  assert str(caught.value).startswith("x.json = ") and len(str(caught.value)) < 300


def test_what_comes_to_too_much_memory_is_refused_before_it_is_parsed():
  with pytest.raises(UserError, match="would come to"):
    bounded.parse_json(b"[" + b"[],[{}]," * 400_000 + b"0]", "x.json", "an object")


@pytest.mark.parametrize("name", DAMAGED)
def test_every_reader_of_a_file_says_so_too(name, tmp_path):
  for file, reader in (
    ("config.json", lambda: run.read_config(tmp_path)),
    ("sigmas.json", lambda: run.read_sigmas(tmp_path)),
    ("model.json", lambda: weights.load_weights(tmp_path)),
    ("metrics.jsonl", lambda: lines.read(tmp_path / "metrics.jsonl")),
  ):
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / file).write_text(DAMAGED[name] + "\n")
    with pytest.raises(UserError, match=file):
      reader()


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "config.json")
  with pytest.raises(UserError, match="no regular file"):
    run.read_config(tmp_path)
  os.symlink("/dev/zero", tmp_path / "metrics.jsonl")
  with pytest.raises(UserError, match="no regular file"):
    lines.read(tmp_path / "metrics.jsonl")


def test_metrics_that_are_no_records_are_dropped_on_resume(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": "x"}\n[]\n{"loss": 1}\n{"step": 9}\n{"step": 2}\n{"st')
  lines.drop_after(file, 3)
  assert [record["step"] for record in lines.read(file)] == [1, 2]


def test_an_error_is_one_line_that_no_terminal_obeys():
  line = str(UserError("a\x1b]0;title\x07", ["\x9b2J\u202e" * 500], "a\r\nname"))
  assert line.isprintable() and len(line) < 1000 and "\\x1b" in line
