"""Private folders: what a killed process left goes, what others have stays."""

import subprocess
import sys

from cm_jax.storage.scratch import private_folder


def test_the_folder_of_a_process_that_is_gone_goes_and_no_other(tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  script = (
    "import sys, tempfile\nfrom cm_jax.storage.scratch import private_folder\n"
    "tempfile.tempdir = sys.argv[1]\n(private_folder('x') / 'file').touch()\n"
    "print('made', flush=True)\nsys.stdin.read()"
  )
  command = [sys.executable, "-c", script, str(tmp_path)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
    other.stdout.readline()
    (theirs,) = tmp_path.iterdir()
    unlike = tmp_path / f"{theirs.name.rpartition('-')[0].rpartition('-')[0]}"  # without when it began
    elsewhere = tmp_path / f"x-000000000000-{other.pid}-000000000000-a"  # of another machine
    for folder in (unlike, elsewhere):
      folder.mkdir()
    mine = private_folder("x")
    assert theirs.is_dir() and mine.is_dir()
    other.kill()
  again = private_folder("x")
  assert set(tmp_path.iterdir()) == {mine, again, unlike, elsewhere}
