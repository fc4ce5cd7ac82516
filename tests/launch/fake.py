"""Tools that do nothing but write down how they were called."""

import json
import os
import subprocess
from pathlib import Path

REPO = Path(__file__).parents[2]
LAUNCH = REPO / "launch"
TOOLS = ("gcloud", "kubectl", "gcluster", "xpk", "sky", "docker", "ssh", "srun", "scontrol")
_FAKE = """#!/usr/bin/env python3
import json, os, sys
name, log = os.path.basename(sys.argv[0]), os.environ["FAKE_LOG"]
given = [word.split("=")[-1] for word in sys.argv[1:] if "/tmp/" in word]
files = {path: open(path).read() for path in given if os.path.isfile(path)}
with open(log, "a") as file:
  file.write(json.dumps({"argv": [name, *sys.argv[1:]], "files": files}) + "\\n")
line = " ".join(sys.argv)
for part, status, out in json.loads(os.environ.get("FAKE_RULES", "[]")):
  if part in line:
    print(out)
    sys.exit(status)
"""


class Tools:
  """A folder of fakes on PATH.

  Args:
    folder: Where they are made.
  """

  def __init__(self, folder: Path):
    self._bin, self._log = folder / "bin", folder / "log"
    self._bin.mkdir()
    for name in TOOLS:
      (self._bin / name).write_text(_FAKE)
      (self._bin / name).chmod(0o755)

  def run(
    self, script: str, *arguments: str, rules: list[tuple[str, int, str]] | None = None, **environment: str
  ) -> subprocess.CompletedProcess[str]:
    """Run a script of launch/; `rules` are (part of a command line, its status, what it prints)."""
    self._log.write_text("")
    variables = {**os.environ, "PATH": f"{self._bin}:{os.environ['PATH']}", "FAKE_LOG": str(self._log)}
    variables |= {"FAKE_RULES": json.dumps(rules or []), **environment}
    return subprocess.run(
      ["bash", str(LAUNCH / script), *arguments],
      env=variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

  def calls(self) -> list[list[str]]:
    """Return the command lines of the last run."""
    return [call["argv"] for call in self._records()]

  def files(self) -> list[str]:
    """Return the content of the temporary files that were handed over in the last run."""
    return [text for call in self._records() for text in call["files"].values()]

  def _records(self) -> list[dict]:
    return [json.loads(line) for line in self._log.read_text().splitlines()]
