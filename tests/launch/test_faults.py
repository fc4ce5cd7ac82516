"""Every row of the fault table of launch/README.md names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "launch" / "README.md"
# what the table has to have a row of
FAULTS = ("kill -9", "SIGTERM", "disk full", "bit flipped", "cut off", "host that is gone", "stands still",
          "NaN", "other settings", "two trainings")  # fmt: skip


def rows() -> list[list[str]]:
  section = README.read_text().partition("## What happens when something goes wrong")[2]
  lines = [line for line in section.splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_fault_has_a_test_in_the_repository():
  found = rows()
  faults = " ".join(row[0] for row in found)
  assert [fault for fault in FAULTS if fault not in faults] == []
  for fault, *_, tests in found:
    file = None
    for name in re.findall(r"`([^`]+)`", tests):
      if name.endswith(".py"):
        file = TESTS / name
        assert file.is_file(), (fault, name)
      else:
        assert file is not None and f"def {name.removesuffix('...')}" in file.read_text(), (fault, name)
    assert file is not None, fault
