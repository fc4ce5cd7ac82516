"""What the pages tell a person to type: every command line is one that cm_jax takes, and the first block of
README does what it says."""

import re
import shlex
from pathlib import Path

import pytest

from cm_jax import cli
from cm_jax.cli import train

REPO = Path(__file__).parents[1]
PAGES = ("README.md", "configs/README.md", "launch/README.md")
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`(?:python -m )?(cm_jax [a-z-]+ --[^`]*)`")
# whose flags are read, and config with its overrides; nothing is opened or computed
MODULES = ("train", "plan", "sample", "edit", "search_steps", "data", "evaluate", "evaluate_reference")
MODULES += ("likelihood", "train_features", "report", "compare", "benchmark", "ema", "convert")


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


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_is_taken(page, monkeypatch, capsys):
  for module in MODULES:
    nothing = lambda values, overrides=(): None
    read = lambda values, overrides: values.config and train.read(values, overrides)
    does = read if module in ("train", "plan") else nothing
    monkeypatch.setattr(f"cm_jax.cli.{module}.main", does)
  monkeypatch.chdir(REPO)
  taken = arguments(page)
  assert len(taken) > 3
  for words in taken:
    assert cli.run(words) == 0, (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page):
  text = (REPO / page).read_text()
  named = set(re.findall(r"\b(?:launch|configs|tests)/[\w/]+\.(?:sh|py|md|png|jsonl?|yaml|sbatch)", text))
  shown = {REPO / page.rpartition("/")[0] / name for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)}
  missing = [str(path) for path in [*(REPO / name for name in named), *shown] if not path.exists()]
  assert named and not missing


@pytest.mark.slow
def test_the_first_block_does_what_it_says(tmp_path, monkeypatch, capsys):
  """With a network and a length that take seconds: the rest as it is typed."""
  block = (REPO / "README.md").read_text().partition("## Train, sample, measure")[2]
  monkeypatch.chdir(tmp_path)
  small = ["--config.network=toy", "--config.run.num_steps=2", "--config.run.num_samples=0", "--noprogress"]
  for line in BLOCK.findall(block)[0].splitlines():
    words = shlex.split(line.partition("cm_jax ")[2], comments=True)
    words += {"train": small, "evaluate": ["--num=300"]}.get(words[0], [])
    assert cli.run(words) == 0, (words, capsys.readouterr().err)
  assert "| cd " in capsys.readouterr().out
  assert {path.name for path in tmp_path.iterdir()} == {"runs", "x.png"}


@pytest.mark.slow
def test_the_objective_that_is_shown_trains(tmp_path, monkeypatch, capsys):
  """As a person does it: the block becomes mine.py, the line below it is typed."""
  section = (REPO / "README.md").read_text().partition("## Add an objective")[2]
  (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
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
