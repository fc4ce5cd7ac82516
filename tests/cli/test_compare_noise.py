"""`compare noise`: a picture and its numbers, or one line and nothing."""

import json

import pytest

from cm_jax.cli import run
from cm_jax.cli.compare_noise import evaluations, named
from cm_jax.errors import UserError
from tests.cli.weights import weights_folder


def test_what_models_are_called():
  assert named(["/a/x", "/b/x", "/b/y"]) == ["a/x", "b/x", "b/y"]
  assert named(["x", "y/x"]) == ["x", "y/x"]
  with pytest.raises(UserError, match="^--model = runs/cd: expected each model once"):
    named(["runs/edm", "runs/cd/", "runs/cd"])


@pytest.mark.parametrize("given", [["0"], ["1", "x"], ["2", "2"], [""], ["1", "-2"]])
def test_numbers_of_evaluations(given):
  with pytest.raises(UserError, match="^--nfe = "):
    evaluations(given)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((), "--out = : expected the picture to write, FILE.png"),
    (("--out=x.jpg",), "--out = x.jpg: expected the picture"),
    (("--out=x.png",), "--teacher = : expected"),
    (("--out=x.png", "--teacher=t"), "--model = : expected"),
    (("--out=x.png", "--teacher=t", "--model=t"), "--model = t: expected each model once"),
    (("--out=x.png", "--teacher=t", "--model=m", "--nfe=0"), "--nfe = 0: expected"),
  ],
)
def test_what_is_missing_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert run(["compare", "noise", *arguments]) == 2
  error = capsys.readouterr().err
  assert said in error and error.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_weights_folders(tmp_path, capsys):
  teacher = weights_folder(tmp_path / "edm", precond="edm", kind="diffusion")
  student = weights_folder(tmp_path / "cd")
  out = tmp_path / "pictures" / "x.png"
  arguments = [f"--teacher={teacher}", f"--model={student}", "--nfe=1", "--num=12", "--shown=3", "--seed=5"]
  assert run(["compare", "noise", *arguments, f"--out={out}"]) == 0
  assert "| cd    |   1 | 80     |" in capsys.readouterr().out
  stored = json.loads(out.with_suffix(".json").read_text())
  assert [row["name"] for row in stored["rows"]] == ["edm", "cd"] and stored["num"] == 12
  assert run(["compare", "noise", *arguments, "--num_steps=3", "--nfe=2", f"--out={out}"]) == 2
  assert "--nfe = 2: expected one of 1" in capsys.readouterr().err
