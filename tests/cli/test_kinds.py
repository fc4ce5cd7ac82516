"""What a weights folder is sampled with, and what likelihood takes, follow its kind; old ones are asked."""

import numpy as np
import pytest

from cm_jax.assembly import assemble, model_of
from cm_jax.cli import run
from cm_jax.sampling.choose import with_num_steps
from tests import tiny
from tests.cli.weights import weights_folder

WHY = "its model.json is of an older format and does not say it"
ASKED = f"--kind = : expected diffusion, consistency or flow_map: {WHY}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  path = tmp_path_factory.mktemp("kinds")
  kinds = ("diffusion", "consistency", "flow_map", None)
  return {kind: weights_folder(path / str(kind), precond="edm", kind=kind) for kind in kinds}


def sample(folder, out, *arguments: str) -> int:
  return run(["sample", f"--model={folder}", f"--out={out}", "--num=2", "--batch_size=2", *arguments])


@pytest.mark.parametrize(("kind", "nfe"), [("diffusion", 35), ("consistency", 1), ("flow_map", 1)])
def test_the_usual_sampler_is_that_of_the_kind_whatever_the_preconditioning(
  folders, tmp_path, capsys, kind, nfe
):
  assert sample(folders[kind], tmp_path / "x.npz") == 0
  assert f"{nfe} network evaluation" in capsys.readouterr().out
  assert sample(folders[None], tmp_path / "y.npz", f"--kind={kind}") == 0
  assert f"{nfe} network evaluation" in capsys.readouterr().out
  np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "xy"))


@pytest.mark.parametrize(
  ("command", "kind", "arguments", "expected"),
  [
    ("sample", None, (), ASKED),
    ("sample", None, ("--kind=difusion",), "--kind = difusion: expected 'diffusion' (did you mean it?)"),
    ("sample", "consistency", ("--kind=diffusion",), "--kind = diffusion: expected"),
    ("likelihood", None, (), ASKED),
    ("likelihood", "consistency", (), "--model = consistency: expected a diffusion model"),
    ("likelihood", "flow_map", (), "--model = flow_map: expected a diffusion model"),
    ("likelihood", "diffusion", (), "--source = : expected real images, such as digits:test"),
    ("evaluate", "consistency", ("--features=x",), "--features = x: expected one of: digits, dinov2-b"),
    ("search-steps", "consistency", ("--features=x",), "--reference = : expected the data to compare with"),
    ("sample", "diffusion", ("--num_steps=0",), "--num_steps = 0: expected an integer >= 1"),
    ("sample", "diffusion", ("--seed=4294967296",), "--seed = 4294967296: expected"),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(
  folders, tmp_path, capsys, command, kind, arguments, expected
):
  out = () if command in ("likelihood", "search-steps") else (f"--out={tmp_path / 'x.npz'}",)
  before = sorted(folders[kind].iterdir())
  assert run([command, f"--model={folders[kind]}", *out, *arguments]) == 2
  printed = capsys.readouterr()
  assert expected in printed.err and printed.err.count("\n") == 1 and printed.out == ""
  assert not list(tmp_path.iterdir()) and sorted(folders[kind].iterdir()) == before


@pytest.mark.parametrize(
  "name",
  [pytest.param(name, marks=() if name == "euler" else pytest.mark.slow) for name in with_num_steps()],
)
def test_every_sampler_with_steps_is_a_flag_away_and_needs_no_kind(folders, tmp_path, name):
  assert sample(folders[None], tmp_path / "x.npz", f"--sampler={name}", "--num_steps=2") == 0
  assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_noise_levels_need_no_kind(folders, tmp_path):
  assert sample(folders[None], tmp_path / "x.npz", "--sigmas=80") == 0


def test_a_trigflow_teacher_is_a_diffusion_model_and_an_scm_run_is_not(tmp_path, capsys):
  teacher = weights_folder(tmp_path / "teacher", precond="trigflow", kind="diffusion")
  assert sample(teacher, tmp_path / "x.npz") == 0
  assert "35 network evaluations" in capsys.readouterr().out
  assert run(["likelihood", f"--model={teacher}"]) == 2
  assert "--source = : expected real images" in capsys.readouterr().err  # all that it lacks
  for objective, kind in ((tiny.SCT, "consistency"), (tiny.ECT, "consistency"), (tiny.EDM, "diffusion")):
    method = assemble(tiny.config(objective), (8, 8, 1), 0)
    assert model_of(method.config.to_dict(), {}).kind == kind


def test_a_doubt_is_told_after_everything_is_checked(tmp_path, capsys):
  """A bad flag is one line where the use is doubtful too."""
  teacher = weights_folder(tmp_path / "teacher", precond="edm", kind="diffusion")
  doubtful = ["sample", f"--model={teacher}", "--sigmas=70", f"--out={tmp_path / 'x.npz'}", "--num=2"]
  assert run([*doubtful, "--label=4"]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "--label = 4" in said and not (tmp_path / "x.npz").exists()
  assert run(doubtful) == 0
  assert "multistep sampling of a diffusion model" in capsys.readouterr().err
