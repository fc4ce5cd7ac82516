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
environment demo

cm_jax() { "$PYTHON" -m cm_jax "$@"; }
train() { cm_jax train --config="configs/digits_$1.py" --workdir="$runs/$1" "${@:2}"; }
evaluate() { cm_jax evaluate --workdir="$runs/$1" --features="$runs/features" "${@:2}"; }

# Networks this small do not fill two cores: two halves at a time, each on half of the cores, with a progress bar each.
cores=$(getconf _NPROCESSORS_ONLN)
both() {
  set -m  # a process group each: what stops the demo stops all that each of them started
  NPROC=$((cores > 1 ? cores / 2 : 1)) $1 &
  first=$!
  NPROC=$((cores > 1 ? cores / 2 : 1)) TQDM_POSITION=1 $2 &
  second=$!
  set +m
  trap 'kill -- -$first -$second 2>/dev/null' EXIT
  wait $first
  wait $second
  trap - EXIT
  printf '\n' >&2
}

# name: say that the other half may go on; wait until it may
told() { touch "$runs/.$1"; }
await() { until [ -e "$runs/.$1" ]; do sleep 1; done; }

teacher_and_cd() {
  train edm
  told teacher
  cm_jax train-features --source=digits --out="$runs/features"
  train cd --teacher="$runs/edm"
  told cd
  evaluate edm --num_steps=18
}

# waits for the other half, which is the one whose failure ends both
the_rest() {
  train ict
  await teacher
  train ect --init="$runs/edm"
  await cd
  evaluate ict --sigmas=80 --sigmas=80,1.6
  evaluate ect --sigmas=80 --sigmas=80,1.6
  evaluate cd --sigmas=80 --sigmas=80,3
}

mkdir -p "$runs"
rm -f "$runs/.teacher" "$runs/.cd"
both teacher_and_cd the_rest
cm_jax report --folder="$runs"
