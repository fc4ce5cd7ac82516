"""What the configs say of themselves and what configs/README.md says of them: commands, numbers, variants."""

import re

import pytest

from cm_jax.cli.config_flags import read_file
from cm_jax.errors import UserError
from cm_jax.evaluation.plans import read_plans
from cm_jax.evaluation.rows import PLANS
from tests.configs.rows import (
  CONFIGS,
  NAMES,
  PAPERS,
  ROWS,
  commands,
  docstring,
  file_of,
  flags_of,
  variants_of,
)

README = (CONFIGS / "README.md").read_text()
SECTION = README.partition("## The papers' rows")[2].partition("\n## ")[0]


def test_every_file_names_the_command_that_trains_it():
  for row in ROWS:
    assert commands(row), f"{row}: no command of its own in the file"
    assert all("workdir" in flags for flags in commands(row)), row


def test_every_row_of_a_paper_says_what_it_is_of():
  for row in PAPERS:
    told = " ".join(docstring(row).split())
    for what in ("FID", "Ours: not yet run", "Compute:", "Departures:", "--workdir=/data/"):
      assert what in told, f"{row}: {what}"


def test_variants_are_told_where_they_are_and_are_where_they_are_told():
  for name in NAMES:
    told = set(re.findall(rf"{name}\.py:([\w.-]+)", docstring(name)))
    known = set(variants_of(name)) - {""}
    assert told <= known, f"{name}: {told - known}"
    assert known - {variants_of(name)[0]} <= told, f"{name}: {known - told} has no command"


def test_a_default_is_its_first_variant_and_another_one_is_one_line():
  for name in NAMES:
    if len(variants_of(name)) > 1:
      file = str(CONFIGS / f"{name}.py")
      assert read_file(file) == read_file(f"{file}:{variants_of(name)[0]}"), name
  for spec, expected in (
    ("cifar10_cd.py:lpisp", r"'lpips' \(did you mean it\?\) or one of: l1, l2, lpips"),
    ("imagenet64_ct.py:coed", r"'code' \(did you mean it\?\) or one of: code, paper"),
  ):
    with pytest.raises(UserError, match=f"^--config = .*{spec}: expected {expected}$"):
      read_file(str(CONFIGS / spec))


def table() -> list[list[str]]:
  """Return the cells of the lines of the papers' table."""
  lines = [
    line for line in SECTION.splitlines() if line.startswith("| ") and "python -m cm_jax train" in line
  ]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_every_row_once_with_its_command():
  listed = []
  for row, config, paper, ours, command, hours in table():
    match = re.fullmatch(r"`(\w+)\.py(:[\w.-]+)?`", config)
    assert match and row and paper and ours and hours, config
    listed.append(match[1] + (match[2] or ""))
    flags = flags_of(command.strip("`"))
    assert flags in commands(listed[-1]), f"{config}: its file has another command"
    assert flags["config"] == file_of(listed[-1])
  assert sorted(listed) == sorted(PAPERS)


def test_the_command_of_every_row_was_planned_and_fits_one_device():
  plans = {plan.config: plan for plan in read_plans(CONFIGS / "results" / "rows" / PLANS)}
  listed = [config.strip("`") for _, config, *_ in table()]
  assert list(plans) == listed
  for _, config, _, _, command, hours in table():
    plan, flags = plans[config.strip("`")], flags_of(command.strip("`"))
    planned = flags_of(plan.command)
    assert (plan.device, plan.count) == (planned.pop("device"), int(planned.pop("count"))) == ("h100", 1)
    assert planned == {key: value for key, value in flags.items() if key.startswith("config")} | {"json": ""}
    assert plan.accumulation == int(flags.get("config.accumulation", 1)), config
    assert plan.fits and 0 < plan.memory_gb <= plan.usable_gb == 60, config
    assert float(hours.replace(",", "")) == pytest.approx(plan.device_hours, rel=0.006), config
