#!/usr/bin/env bash
# Every objective on the digits under one budget: the same network, batch size and number of training images, three seeds each; measured
# with 1, 2 and 4 network evaluations; one table and one picture in runs/compare. Run again it goes on where it stopped; --fresh starts over.
# STEPS (800) and SEEDS ("0 1 2") may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=runs/compare steps=${STEPS:-800} seeds=${SEEDS:-0 1 2}
case "${1:-}" in
  "") ;;
  --fresh) rm -rf "$runs" ;;
  *) echo "usage: [STEPS=800] [SEEDS='0 1 2'] bash launch/compare.sh [--fresh]" >&2; exit 2 ;;
esac

source launch/environment.sh
environment demo

methods=(cd cd_continuous scd pd ect sct ct ict)
teacher=$runs/edm/0
mkdir -p "$runs"
printf '%s\n' edm "${methods[@]}" >"$runs/order.txt"

cm_jax() { "$PYTHON" -m cm_jax "$@"; }
evaluate() { cm_jax evaluate --features="$runs/features" "$@"; }

# method seed: train one student and measure it
student() {
  local run=$runs/$1/$2 from=()
  case $1 in
    cd | cd_continuous | scd | pd) from=(--teacher="$teacher") ;;
    ect | ct | sct) from=(--init="$teacher") ;;
  esac
  cm_jax train --config="configs/digits_$1.py" --config.num_images=$((64 * steps)) --workdir="$run" --config.seed="$2" "${from[@]}"
  if [ "$1" = pd ]; then # each number of steps has its own student, the last checkpoint of its stage
    local stage=$((steps / 5))
    evaluate --workdir="$run" --sampler=euler --num_steps=4 --step=$((3 * stage))
    evaluate --workdir="$run" --sampler=euler --num_steps=2 --step=$((4 * stage))
    evaluate --workdir="$run" --sampler=euler --num_steps=1
  else
    evaluate --workdir="$run" --sigmas=80 --sigmas=80,1.6 --sigmas=80,8,1.6,0.4
  fi
}

export TQDM_MININTERVAL=10
cm_jax train-features --source=digits --out="$runs/features"
cm_jax train --config=configs/digits_edm.py --workdir="$teacher"
evaluate --workdir="$teacher" --num_steps=18

# Networks this small do not fill two cores: one job for each, from one list.
cores=$(getconf _NPROCESSORS_ONLN)
jobs=$((cores > 1 ? cores : 1))
export NPROC=1 PYTHON runs steps teacher
export -f student evaluate cm_jax
# shellcheck disable=SC2016 # the inner shell expands it
for seed in $seeds; do printf "%s $seed\n" "${methods[@]}"; done |
  xargs -P "$jobs" -I{} bash -c 'set -Eeuo pipefail; trap "exit 255" ERR; set -- {}; student "$1" "$2"'
cm_jax compare --folder="$runs" --jobs="$jobs"
