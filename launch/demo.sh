#!/usr/bin/env bash
# The main job, from nothing to images in one network evaluation: makes .venv, trains a diffusion teacher and three consistency models on
# real 8x8 digits, samples and measures each, prints the table. Run again it goes on where it stopped; --fresh starts over.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=runs/digits
case "${1:-}" in
  "") ;;
  --fresh) rm -rf "$runs" ;;
  *) echo "usage: bash launch/demo.sh [--fresh]" >&2; exit 2 ;;
esac

source launch/environment.sh
environment requirements

cm_jax() { "$PYTHON" -m cm_jax "$@"; }
evaluate() { cm_jax evaluate --workdir="$runs/$1" --features="$runs/features" "${@:2}"; }

cm_jax train-features --source=digits --out="$runs/features"
cm_jax train --config=configs/digits_edm.py --workdir="$runs/edm"
cm_jax train --config=configs/digits_cd.py --teacher="$runs/edm" --workdir="$runs/cd"
cm_jax train --config=configs/digits_ict.py --workdir="$runs/ict"
cm_jax train --config=configs/digits_ect.py --init="$runs/edm" --workdir="$runs/ect"
evaluate edm --num_steps=18
for method in cd ict ect; do
  evaluate "$method" --sigmas=80 --sigmas=80,0.8
done
cm_jax report --folder="$runs"
