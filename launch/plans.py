"""Plan every papers' row on one device by its command in configs/README.md: configs/results/rows/plans.json.

  python launch/plans.py                                         # all rows, some seconds each
  python launch/plans.py cifar10_edm.py cifar10_edm.py:cond-vp   # these; of the others what is kept stays
  python -m cm_jax report --rows --out=configs/README.md         # then: into the table

Of a row's command `plan` is given all but the folders, none of which need be there: the teacher's network is
the one that the config's file names.
"""

import argparse
import contextlib
import io
import json
import re
import shlex
from pathlib import Path

from cm_jax import cli

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEVICE = ["--device=h100", "--count=1", "--json"]
FOLDERS = ("--workdir=", "--teacher=", "--init=")
ROW = re.compile(
  r"^\|[^|]+\| `(?P<config>\w+\.py(?::[\w.-]+)?)` \|.*`python -m cm_jax train (?P<flags>[^`]+)`", re.M
)


def planned(config: str, flags: str) -> dict[str, object]:
  """Return what is kept of a row's plan, given the flags of its training command."""
  arguments = ["plan", *(flag for flag in shlex.split(flags) if not flag.startswith(FOLDERS)), *DEVICE]
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    if cli.run(arguments):
      raise SystemExit(f"{config}: not planned")
  found = json.loads(printed.getvalue())
  return {
    "config": config,
    "command": shlex.join(["python", "-m", "cm_jax", *arguments]),
    "device": "h100",
    **{key: found[key] for key in ("count", "mfu", "batch_size", "accumulation")},
    "device_hours": float(f"{found['device_hours']:.4g}"),
    "memory_gb": round(sum(found["memory"].values()) / 1e9, 2),
    "usable_gb": round(found["usable"] / 1e9, 2),
    "fits": found["fits"],
  }


def main() -> None:
  """Plan rows, and keep what was planned after each."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("rows", nargs="*", help="Configs as the table names them; by default all.")
  parser.add_argument("--out", type=Path, default=CONFIGS / "results" / "rows" / "plans.json")
  args = parser.parse_args()
  table = dict(ROW.findall((CONFIGS / "README.md").read_text()))
  if unknown := sorted(set(args.rows) - table.keys()):
    raise SystemExit(f"{unknown[0]}: no row of configs/README.md")
  kept = {plan["config"]: plan for plan in json.loads(args.out.read_text())} if args.out.exists() else {}
  args.out.parent.mkdir(parents=True, exist_ok=True)
  for row in args.rows or table:
    kept[row] = planned(row, table[row])
    print(f"{row}: {kept[row]['device_hours']:,} device-hours, {kept[row]['memory_gb']} GB", flush=True)
    lines = [json.dumps(kept[config]) for config in table if config in kept]
    args.out.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
  main()
