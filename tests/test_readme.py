"""What the pages tell a person to type: every command line is one that cm_jax takes; README's run, as they
are typed, but for the few that `NOT_RUN` lists with why."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

from cm_jax import build, cli, load_model
from cm_jax.cli import train
from cm_jax.storage import weights
from tests import tiny

REPO = Path(__file__).parents[1]
PAGES = ("README.md", "configs/README.md", "launch/README.md")
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(?:python -m )?(cm_jax [a-z-]+ --[^`]*)`")
# whose flags are read, and config with its overrides; nothing is opened or computed
MODULES = ("train", "plan", "sample", "edit", "search_steps", "data", "evaluate", "evaluate_reference")
MODULES += ("likelihood", "train_features", "report", "compare", "benchmark", "ema", "convert")


# Lines of README that no test runs as they are typed: how they begin, and why. All are parsed. Any other line
# runs, shrunk by SMALL, in the folder that `session` makes.
NOT_RUN = {
  "bash launch/demo.sh": "minutes: test_the_demo_runs_what_is_taken; its runs: test_demo.py",
  "bash launch/test.sh": "this is what it runs",
  "python -m cm_jax evaluate --workdir=runs/cd --features=inception": "fetches Inception's weights",
  "python -m cm_jax evaluate --images=samples.npz --features=inception": "fetches Inception's weights",
  "python -m cm_jax convert --input=edm-cifar10": "NVIDIA's weights; of the same form: tests/convert",
  "python -m cm_jax convert --input=cd-lpips": "OpenAI's weights; of the same form: tests/convert",
  "cm_jax benchmark": "PyTorch beside it and a quiet machine, for minutes: tests/benchmark",
  "cm_jax plan --config=...": "leaves the config to you: tests/benchmark/test_plan.py",
}
_TRAIN = ["--config.network=toy", "--config.run.num_steps=2", "--config.run.num_samples=0", "--noprogress"]
# what the other blocks leave behind, in the order in which they run
MADE = {
  "# cm_jax": ["digits.png", "runs/mine/checkpoints"],
  "## Train, sample, measure": ["samples.npz", "folder", "edited/grid.png"],
  "## Your own images": ["runs/photos/checkpoints", "runs/photos_ect/checkpoints", "photos.zip"],
  "## Evaluate": ["runs/photos/features"],
  "## Published weights": ["y.png"],
}
SMALL = {
  "train": _TRAIN,
  "evaluate": ["--num=300"],
  "search-steps": ["--num=40"],
  "likelihood": ["--num=4"],
  "train-features": ["--num_steps=2"],
}


def lines(page: str) -> list[str]:
  """Return the command lines of a page, as a shell takes them."""
  text = (REPO / page).read_text()
  blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
  inline = [] if page == "configs/README.md" else INLINE.findall(text)  # its rows: tests/configs/test_told.py
  return [line for line in [*blocks, *inline] if line.strip()]


def arguments(page: str) -> list[list[str]]:
  """Return what the page's command lines give to cm_jax, but for those that leave something out."""
  found = [re.search(r"\bcm_jax ([^;]*)", line) for line in lines(page)]
  split = [shlex.split(match[1], comments=True) for match in found if match]
  return [words for words in split if not any("..." in word for word in words)]


def parsed(commands: list[list[str]], monkeypatch, capsys) -> None:
  """Give command lines to cm_jax, of which only flags and configs are read."""
  for module in MODULES:
    nothing = lambda values, overrides=(): None
    read = lambda values, overrides: values.config and train.read(values, overrides)
    does = read if module in ("train", "plan") else nothing
    monkeypatch.setattr(f"cm_jax.cli.{module}.main", does)
  monkeypatch.chdir(REPO)
  for words in commands:
    assert cli.run(words) == 0, (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_is_taken(page, monkeypatch, capsys):
  taken = arguments(page)
  assert len(taken) > 3
  parsed(taken, monkeypatch, capsys)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page):
  text = (REPO / page).read_text()
  named = set(re.findall(r"\b(?:launch|configs|tests)/[\w/]+\.(?:sh|py|md|png|jsonl?|yaml|sbatch)", text))
  shown = {REPO / page.rpartition("/")[0] / name for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)}
  missing = [str(path) for path in [*(REPO / name for name in named), *shown] if not path.exists()]
  assert named and not missing


def blocks(heading: str, language: str = "bash") -> list[str]:
  """Return the blocks of a section of README."""
  section = (REPO / "README.md").read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
  return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def runs(line: str) -> bool:
  return not any(line.startswith(begins) for begins in NOT_RUN)


def typed(block: str, photos: Path) -> str:
  """Run the lines of a block here and return what they print."""
  printed = io.StringIO()
  for line in filter(runs, block.splitlines()):
    words = shlex.split(line.replace("folder:/photos ", f"folder:{photos} "), comments=True)
    assert words[:3] == ["python", "-m", "cm_jax"], line
    small = SMALL.get(words[3], [])
    if "--init=digits-edm" in words:  # which says what the network is
      small = small[1:]
    if "--num=50000" in words:
      small = ["--num=64"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
      status = cli.run([*words[3:], *small])
    assert status == 0, (words, printed.getvalue())
  return printed.getvalue()


def pictures(folder: Path, shape: tuple[int, ...], count: int) -> None:
  folder.mkdir(parents=True)
  values = np.random.default_rng(len(folder.parts)).integers(0, 256, (count, *shape), np.uint8)
  for i, image in enumerate(values):
    PIL.Image.fromarray(image).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
  """A folder with what README's lines take for granted: photos of one's own, a mask, a teacher's weights, and
  the runs of its first block, made by its lines; gives the folder and what they print."""
  folder = tmp_path_factory.mktemp("readme")
  pictures(folder / "photos", (8, 8), 3)
  PIL.Image.fromarray(np.uint8([[255] * 4 + [0] * 4] * 8)).save(folder / "mask.png")
  for kind in ("cats", "dogs"):
    pictures(folder / "own" / kind, (70, 90, 3), 80)  # a network of one's own takes 128
  config = tiny.config(tiny.EDM)
  config.data.conditional, config.objective.label_dropout = True, 0.1
  experiment = build(config)
  model = experiment.model(jax.jit(experiment.method.init)(jax.random.key(3)))
  origin = {"source_sha256": "", "licence": ""}
  weights.save_weights(
    folder / "weights" / "edm", {"net": model.params["net"]}, {**weights.info_of(model), **origin}
  )
  (folder / "configs").symlink_to(REPO / "configs")
  with contextlib.chdir(folder):
    yield folder, typed(blocks("## Train, sample, measure")[0], folder / "own")


def test_every_line_of_readme_runs_or_is_listed_with_why():
  text = (REPO / "README.md").read_text()
  typed_here = [line for heading in MADE for block in blocks(heading) for line in block.splitlines()]
  shown = [line for line in lines("README.md") if runs(line)]
  (objective,) = [line for line in shown if line not in typed_here]
  assert "python:mine:Mine" in objective  # test_the_objective_that_is_shown_trains
  for begins in NOT_RUN:
    assert any(line.startswith(begins) for line in lines("README.md")), begins
  assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * (
    len(BLOCK.findall(text)) + 3
  )  # Python's, BibTeX


def test_the_demo_runs_what_is_taken(tmp_path, monkeypatch, capsys):
  """README's line, with a Python in .venv that only writes down what it is given."""
  (tmp_path / "launch").mkdir()
  for name in ("launch/demo.sh", "launch/environment.sh", "requirements.txt", "setup.cfg", "pyproject.toml"):
    (tmp_path / name).write_bytes((REPO / name).read_bytes())
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/usr/bin/env bash\nline=$(printf "%q " "$@")\necho "$line" >>log\n')
  python.chmod(0o755)
  line = next(line for line in lines("README.md") if line.startswith("bash launch/demo.sh"))
  done = subprocess.run(
    ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHON_BASE": sys.executable}, timeout=60,
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  called = [shlex.split(call) for call in (tmp_path / "log").read_text().splitlines()]
  assert called[0][:3] == ["-m", "pip", "install"]
  commands = [words[2:] for words in called[1:]]
  assert all(words[:2] == ["-m", "cm_jax"] for words in called[1:])
  told = [(words[0], words[1].rpartition("/")[2].removeprefix("--")) for words in commands]
  for name in ("edm", "cd", "ict", "ect"):
    assert told.index(("train", f"digits_{name}.py")) < told.index(("evaluate", name))
  assert told.index(("train", "digits_edm.py")) < told.index(("train", "digits_cd.py"))
  assert told[-1][0] == "report"
  parsed(commands, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.xdist_group("readme")  # one worker: the runs are made once
def test_the_lines_of_readme_do_what_they_say(session):
  """With networks and lengths that take seconds, the rest as it is typed, in the order of the page."""
  folder, printed = session
  assert "| cd " in printed
  assert {"runs", "x.png"} <= {path.name for path in folder.iterdir()}
  for heading, made in MADE.items():
    typed("".join(blocks(heading)[heading == "## Train, sample, measure" :]), folder / "own")
    missing = [name for name in made if not (folder / name).exists()]
    assert not missing, heading
  assert np.load(folder / "samples.npz")["arr_0"].shape == (64, 8, 8, 1)
  with zipfile.ZipFile(folder / "photos.zip") as file, file.open(file.namelist()[0]) as first:
    assert PIL.Image.open(first).size == (64, 64)


@pytest.mark.slow
def test_the_library_block_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (block,) = blocks("## As a library", "python")
  assert len(block.splitlines()) < 20
  names = {}
  exec(compile(block, "README.md", "exec"), names)
  assert names["images"].shape == (16, 8, 8, 1) and names["varied"].shape == (32, 8, 8, 1)
  assert names["x"].shape == (4, 8, 8, 1) and float(np.abs(names["x"]).max()) < 3
  values = {record.metric: record.value for record in names["measured"].made}
  assert values["fd_digits_floor"] < values["fd_digits"] < 10
  assert load_model("runs/toy").provenance["step"] == int(names["state"].step) == 10


@pytest.mark.slow
def test_the_objective_that_is_shown_trains(tmp_path, monkeypatch, capsys):
  """As a person does it: the block becomes mine.py, the line below it is typed."""
  section = (REPO / "README.md").read_text().partition("## Add an objective")[2]
  (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's: there it stays in the process
  words = shlex.split(INLINE.search(section)[1].removeprefix("cm_jax "))
  small = ["--config.network=toy", "--config.run.num_steps=3", "--config.run.num_samples=0", "--noprogress"]
  assert cli.run(words + small) == 0, capsys.readouterr().err
  assert cli.run([*words[:2], words[2].replace("1.5", "2.5"), *words[3:], "--dry_run"]) == 0
  assert "--config.objective.power=2.5" in capsys.readouterr().out


def test_the_front_page_is_one_page_that_names_what_is_there():
  text = (REPO / "README.md").read_text()
  assert len(text.splitlines()) < 250
  links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", text)
  assert len(links) > 10 and all((REPO / link.partition("#")[0]).exists() for link in links)
  anchors = {
    re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
    for line in text.splitlines()
    if line.startswith("#")
  }
  assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
