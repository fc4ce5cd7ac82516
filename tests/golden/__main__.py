"""python -m tests.golden DIR [--only=A,B,G.networks]: compare with DIR's numbers; status 1 if any differs."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

from tests import needs
from tests.golden import runner


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
  parser.add_argument("dir", type=Path, nargs="?", default=needs.GOLDEN)
  parser.add_argument(
    "--only", default="", help="letters and sections, separated by commas; everything by default"
  )
  arguments = parser.parse_args()
  if not arguments.dir.is_dir():
    print(f"not run: there is no folder {arguments.dir}")
    return 2
  jax.config.update("jax_default_matmul_precision", "highest")
  chosen = runner.cases(arguments.dir, [part for part in arguments.only.split(",") if part])
  if not chosen:
    print(f"not run: no case in {arguments.dir} for --only={arguments.only}")
    return 2
  return runner.report(row for case in chosen for row in runner.run_case(case))


if __name__ == "__main__":
  sys.exit(main())
