"""A file or folder is whole or not there: after an error, on a full disk, when the process is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cm_jax.errors import UserError
from cm_jax.storage import whole
from tests.storage.places import STORED, WRITES, disk_of, names, no_room

REPO = Path(__file__).parents[2]


def test_a_file_is_written_and_replaced_with_nothing_beside_it(place):
  file = place / "deep" / "er" / "a.txt"
  for content in ("first", "second"):
    whole.write(file, content)
    assert file.read_text() == content
  whole.write(file, b"\0\xff")
  assert file.read_bytes() == b"\0\xff" and names(place) == ["deep/er/a.txt"]


def test_an_error_half_way_leaves_what_was_there(place):
  whole.write(place / "a.txt", "before")
  for file in ("a.txt", "b.txt"):
    with pytest.raises(KeyError), whole.writing(place / file) as temporary:
      temporary.write_text("half")
      raise KeyError
  assert names(place) == ["a.txt"] and (place / "a.txt").read_text() == "before"


def test_content_is_on_the_disk_before_its_name_and_the_name_after(tmp_path, monkeypatch):
  said, fsync, replace = [], os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda fd: (said.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
  monkeypatch.setattr(os, "replace", lambda a, b: (said.append("replace"), replace(a, b)))
  whole.write(tmp_path / "a.txt", "content")
  assert said[1:] == ["replace", str(tmp_path)] and Path(said[0]).name.startswith(".a.txt.")
  said.clear()
  with whole.folder(tmp_path / "folder") as new:
    (new / "one").write_text("1")
    (new / "two").write_text("2")
  assert [Path(path).name for path in said[:2]] == ["one", "two"]
  assert Path(said[2]).name == "new" and said[3:] == ["replace", str(tmp_path)]


@pytest.mark.parametrize("where", ["fsync", "size", "replace"])
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch, where):
  file, folder = tmp_path / "a.txt", tmp_path / "folder"
  whole.write(file, "before")
  with whole.folder(folder) as new:
    (new / "one").write_text("before")

  def fill() -> None:
    with pytest.raises(
      UserError, match=f"^{file} = .*expected a place that can be written, with room enough"
    ):
      whole.write(file, "x" * 5000)
    with pytest.raises(UserError, match=f"^{tmp_path / 'new' / 'b.txt'} = "):
      whole.write(tmp_path / "new" / "b.txt", "x" * 5000)
    with pytest.raises(UserError, match=f"^{folder} = "), whole.folder(folder) as new:
      whole.write(new / "one", "x" * 5000)

  if where == "size":
    with disk_of(1000):
      fill()
  else:
    with monkeypatch.context() as patched:
      patched.setattr(os, where, no_room)
      fill()
  assert names(tmp_path) == ["a.txt", "folder/one"]
  assert file.read_text() == (folder / "one").read_text() == "before"


def test_a_full_scratch_disk_is_named_and_nothing_is_uploaded(monkeypatch):
  STORED.clear()
  with disk_of(1000), pytest.raises(UserError, match="^memory://bucket/a.txt = File too large"):
    whole.write("memory://bucket/a.txt", "x" * 5000)
  assert not STORED


def test_a_folder_appears_whole_and_replaces_what_was_there(place):
  for content in ("first", "second"):
    with whole.folder(place / "a", last="index") as new:
      (new / "sub").mkdir()
      (new / "sub" / "part").write_text(content)
      (new / "index").write_text("sub/part")
    assert names(place) == ["a/index", "a/sub/part"]
    assert (place / "a" / "sub" / "part").read_text() == content
  with pytest.raises(KeyError), whole.folder(place / "a") as new:
    (new / "sub").mkdir()
    raise KeyError
  assert names(place) == ["a/index", "a/sub/part"]


def test_elsewhere_the_file_that_makes_a_folder_complete_comes_last():
  STORED.clear()
  WRITES.clear()
  with whole.folder("memory://bucket/a", last="a_first") as new:
    for name in ("a_first", "b", "c"):
      (new / name).write_text(name)
  assert [address.rsplit("/")[-1] for address in WRITES] == ["b", "c", "a_first"]


KILLED = """
import os, signal, sys
from cm_jax.storage import whole
how, target = sys.argv[1:]
with whole.writing(target) if how == "file" else whole.folder(target) as new:
  (new if how == "file" else new / "part").write_text("half")
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["file", "folder"])
def test_what_a_killed_process_leaves_is_not_taken_for_the_file(tmp_path, how):
  target = tmp_path / "a"
  command = [sys.executable, "-c", KILLED, how, str(target)]
  killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPO)})
  assert killed.returncode == -signal.SIGKILL
  left = names(tmp_path)
  assert not target.exists() and len(left) == 1 and left[0].startswith(".a")
  if how == "file":
    whole.write(target, "whole")
    assert target.read_text() == "whole"
  else:
    with whole.folder(target) as new:
      (new / "part").write_text("whole")
    assert names(target) == ["part"]


def test_an_unknown_scheme_is_one_line():
  for use in (whole.is_local, whole.absolute, lambda path: whole.write(path, "x")):
    with pytest.raises(
      UserError, match="^path = nowhere://bucket/a: expected a path of this machine, or one"
    ):
      use("nowhere://bucket/a")


def test_a_place_that_cannot_be_written_is_found_out_beforehand(tmp_path):
  whole.check_writable("out", tmp_path / "deep" / "a")
  whole.check_writable("out", "memory://bucket/a")
  (tmp_path / "file").write_text("x")
  with pytest.raises(
    UserError, match=f"^out = .*expected a place that can be written, unlike {tmp_path / 'file'}"
  ):
    whole.check_writable("out", tmp_path / "file" / "a")
